"""Prompts with two uses, and the page that says there are none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from prefloop.config.parse import parse
from prefloop.config.validate import ValidateConfig
from prefloop.data.validation.checking import check_kind
from prefloop.data.validation.leaks import find_leaks
from prefloop.data.validation.page import render_page
from prefloop.errors import DataError

KINDS = ("demonstrations", "preferences", "judge", "unpaired", "prompts", "evaluation")
LONG = (
    "please tell me in a few words why the sky over the city looks red when the sun goes down in the evening"
)


def write(folder: Path, **prompts: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    for kind in KINDS:
        rows = [{"prompt": prompt, "id": f"{kind}-{i}"} for i, prompt in enumerate(prompts.get(kind, []))]
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def leaks(folder: Path, **expectations: Any) -> Any:
    config = parse(ValidateConfig, {"expectations": expectations}, "validate")
    return find_leaks(folder, config, folder)


def test_disjoint_prompts_are_proved(tmp_path: Path) -> None:
    write(
        tmp_path, demonstrations=["a", "A "], preferences=["b"], judge=["c"], prompts=["d"], evaluation=["e"]
    )
    report = leaks(tmp_path)
    assert report.shared == 0
    assert report.prompts == {"fitting": 3, "rl": 1, "evaluation": 1}


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ("preferences", "evaluation", "fitting and evaluation share 1 prompts"),
        ("demonstrations", "prompts", "fitting and rl share 1 prompts"),
        ("prompts", "evaluation", "rl and evaluation share 1 prompts"),
        ("preferences", "judge", "preferences and judge share 1 prompts"),
        ("unpaired", "evaluation", "fitting and evaluation share 1 prompts"),
        ("unpaired", "judge", "preferences and judge share 1 prompts"),
    ],
)
def test_a_shared_prompt_stops_the_run_and_names_both_rows(
    tmp_path: Path, left: str, right: str, words: str
) -> None:
    write(tmp_path, **{left: ["x", "Is it  so?"], right: [[{"role": "user", "content": "is it so?"}]]})
    with pytest.raises(DataError, match=words) as caught:
        leaks(tmp_path)
    assert f"{left}.jsonl, row 2 ({left}-1)" in str(caught.value)
    assert f"{right}.jsonl, row 1 ({right}-0)" in str(caught.value)
    assert leaks(tmp_path, no_leak={"severity": "warn"}).shared == 1


def test_nearly_shared_prompts_are_reported_and_templates_are_not(tmp_path: Path) -> None:
    write(tmp_path, preferences=[LONG], prompts=[LONG.replace("red", "blue")], evaluation=[LONG + " or so"])
    near = {(o.left, o.right): o.prompts for o in leaks(tmp_path, no_near_leak={"threshold": 0.8}).near}
    assert near[("fitting", "evaluation")] == 1
    assert near[("fitting", "rl")] == 0
    with pytest.raises(DataError, match="nearly share"):
        leaks(tmp_path, no_near_leak={"threshold": 0.8, "severity": "error"})
    assert leaks(tmp_path, no_near_leak={"severity": "off"}).near is None


def test_the_page_shows_every_kind_and_escapes_what_rows_say(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    evil = "<script>alert(1)</script>"
    rows = [
        {"prompt": "a?", "chosen": "yes", "rejected": "no", "source": evil, "line": 1},
        {"prompt": "b?", "chosen": "yes", "rejected": "no", "source": evil, "line": 2},
        {"invalid": f"odd {evil}", "raw": evil, "source": evil, "line": 3},
    ]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = check_kind("preferences", raw, tmp_path / "v", tmp_path / "q", ValidateConfig(), tmp_path)
    write(tmp_path / "validated", preferences=["a?", "b?"], evaluation=["c?"])
    page = render_page([asdict(report)], leaks(tmp_path / "validated"))
    assert evil not in page
    assert "odd &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "3 rows in: 2 validated, 1 quarantined" in page
    assert "No prompt has two uses" in page
    assert "http" not in page.replace("http-equiv", "")
