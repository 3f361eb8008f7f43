"""Every figure that a training records over steps is defined on its page in docs/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tiny import StopAfter
from tests.training.trainings import TRAININGS


def defined(page: Path) -> set[str]:
    """First cells, in backticks, of the tables of metrics."""
    text = page.read_text(encoding="utf-8").partition("## Metrics")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


PAGES = {"sft_packed": "sft", "ppo_shared": "ppo", "dapo": "grpo"}


@pytest.mark.parametrize("name", TRAININGS)
def test_recorded_figures_are_defined(name: str, tmp_path: Path, repository: Path) -> None:
    recorder = StopAfter()
    TRAININGS[name](tmp_path / "scratch", recorder, steps=1)
    docs = repository / "docs"
    method = PAGES.get(name, name.removesuffix("_with_adapter"))
    known = defined(docs / "training.md") | defined(docs / f"{method}.md")
    known |= {"step", "reward/rule"}  # a source of the tests' own
    assert set(recorder.rows[0]) <= known
