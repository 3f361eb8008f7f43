"""Fingerprints of stages' code: what changes one, and what a stage does that finds another than it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefloop.errors import WorkspaceError
from tasks.support.code import Code, all_code, confirm, keep, stage_code, stage_module, write_code
from tasks.support.keys import stage_key

PIPELINE = """
stages:
  sft:
    cmd: python -m tasks.sft
    params: [{runs/code.json: [sft]}]
  ppo:
    foreach: ${policies.ppo}
    do:
      cmd: python -m tasks.ppo ${key}
  other:
    cmd: python work.py
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path, text in {
        "dvc.yaml": PIPELINE,
        "tasks/__init__.py": "",
        "tasks/sft.py": "from prefloop import page\n",
        "tasks/ppo.py": "",
        "prefloop/__init__.py": "",
        "prefloop/page.py": "",
        "prefloop/page.html": "<p>",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    write_code()
    return tmp_path


def fingerprints() -> dict[str, str]:
    return {stage: code.fingerprint for stage, code in all_code().items()}


def test_the_file_has_a_fingerprint_for_each_stage_with_a_module_of_ours(root: Path) -> None:
    assert json.loads((root / "runs/code.json").read_text()) == fingerprints()
    assert set(fingerprints()) == {"sft", "ppo"}
    assert stage_code("ppo@loose") == all_code()["ppo"]
    assert stage_code("other") is None


@pytest.mark.parametrize(
    ("path", "text", "touched"),
    [
        ("prefloop/page.py", "x = 1\n", {"sft"}),
        ("prefloop/page.html", "<h1>", {"sft"}),
        ("prefloop/new.css", "", {"sft"}),
        ("tasks/ppo.py", "from prefloop import page\n", {"ppo"}),
        ("tasks/__init__.py", "# a word\n", {"sft", "ppo"}),
        ("prefloop/unread.py", "", set()),
    ],
)
def test_an_edit_changes_the_fingerprints_of_what_reads_the_file(
    root: Path, path: str, text: str, touched: set[str]
) -> None:
    before = fingerprints()
    (root / path).write_text(text)
    after = fingerprints()
    assert {stage for stage in before if before[stage] != after[stage]} == touched


def test_a_renamed_file_is_another_code() -> None:
    assert Code({"a.py": "1"}).fingerprint != Code({"b.py": "1"}).fingerprint
    assert Code({"a.py": "1", "b.py": "2"}).fingerprint == Code({"b.py": "2", "a.py": "1"}).fingerprint


def test_a_stage_of_dvc_refuses_code_that_dvc_does_not_know(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "sft")
    confirm("sft", stage_code("sft"))
    (root / "prefloop/page.py").write_text("x = 2\n")
    with pytest.raises(WorkspaceError, match="the code of stage sft was edited since this run began"):
        confirm("sft", stage_code("sft"))
    confirm("ppo@loose", stage_code("ppo@loose"))
    monkeypatch.delenv("DVC_STAGE")
    confirm("sft", stage_code("sft"))  # by hand nobody records a fingerprint


def test_dvc_records_what_ran_though_the_file_was_written_anew_meanwhile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_STAGE", "sft")
    ran = stage_code("sft")
    (root / "tasks/__init__.py").write_text("# edited while the stage ran\n")
    write_code()
    after = fingerprints()
    keep("sft", ran)
    assert json.loads((root / "runs/code.json").read_text()) == after | {"sft": ran.fingerprint}


def test_the_key_follows_the_code_that_runs(root: Path) -> None:
    recorded = stage_key("sft", {})
    assert stage_key("sft", {}, code=stage_code("sft")) == recorded
    (root / "prefloop/page.py").write_text("x = 3\n")
    assert stage_key("sft", {}) == recorded
    assert stage_key("sft", {}, code=stage_code("sft")) != recorded


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("python -m tasks.sft", "tasks.sft"),
        ("python -m tasks.evaluate ppo", "tasks.evaluate"),
        ("python tasks/sft.py a b", "tasks.sft"),
        ("python work.py", ""),
        ("python -m dvc", ""),
        ("cp -m", ""),
        ("", ""),
    ],
)
def test_the_module_of_a_command(command: str, module: str) -> None:
    assert stage_module(command) == module
