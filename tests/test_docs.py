"""Each stage's page documents every key of its section and no other; links lead somewhere."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefloop.config.params import METHODS, Params
from prefloop.config.read import read_yaml
from prefloop.config.training import TrainingConfig
from prefloop.config.validate import DEFAULTS

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
SECTIONS = [field.name for field in dataclasses.fields(Params) if field.name not in ("seed", "policies")]


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys_of(typing.cast(type, hints[field.name]), f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def documented(page: Path, heading: str) -> list[str]:
    """First cells, in backticks, of the table under a second-level heading."""
    text = page.read_text(encoding="utf-8")
    section = re.split(r"^## ", text.partition(f"## {heading}\n")[2], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


def test_the_shared_page_documents_every_shared_key() -> None:
    assert documented(ROOT / "docs" / "training.md", "Parameters") == list(keys_of(TrainingConfig))


@pytest.mark.parametrize("section", SECTIONS)
def test_a_page_documents_every_key_of_its_section(section: str) -> None:
    cls = typing.get_type_hints(Params)[section]
    keys = set(keys_of(cls))
    if issubclass(cls, TrainingConfig):
        keys -= set(keys_of(TrainingConfig))
    found = documented(ROOT / "docs" / f"{section}.md", "Parameters")
    assert sorted(found) == sorted(keys)


def test_the_methods_of_policies_are_documented() -> None:
    assert documented(ROOT / "docs" / "policies.md", "Methods") == list(METHODS)


def test_every_expectation_is_documented() -> None:
    assert documented(ROOT / "docs" / "validate.md", "Expectations") == list(DEFAULTS)


def test_the_picture_shows_every_stage() -> None:
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    texts = re.findall(r"<text[^>]*>([^<]+)", (ROOT / "docs" / "dag.svg").read_text(encoding="utf-8"))
    shown = set(re.findall(r"[a-z_]+", " ".join(texts)))
    # The leak check stands in validate's box.
    assert {word for name in stages for word in name.split("-")} <= shown


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name
)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"
