"""dvc.lock as libyaml writes it against what DVC writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from dvc import dvcfile
from dvc.utils.serialize import load_yaml, modify_yaml

from flows.dvc_process import modify

LOCK = """\
schema: '2.0'
stages:
  ingest:
    cmd: python -m tasks.ingest
    deps:
    - path: data/sources
      hash: md5
      md5: d751713988987e9331980363e24189ce.dir
      size: 0
    params:
      params.yaml:
        seed: 0
        ingest:
          rate: 1e-05
          share: 0.7
          text: []
          kinds: {}
          name: ''
          word: on
          number: '1e3'
          harmful: true
          words: ä ß
          pattern: '\\d+: *'
        zeta: 1
        alpha: 2
"""
ENTRY = {
    "cmd": "python -m tasks.sft",
    "params": {"params.yaml": {"sft": {"rate": 2e-05, "when": "12:30", "no": "no", "n": (1, 2)}}},
    "outs": [{"path": "models/sft", "md5": "0123e45", "size": 12}],
}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "dvc.lock"
    path.write_text(LOCK, encoding="utf-8")
    return path


def add(how, path: Path, entry) -> str:
    with how(str(path)) as data:
        data["stages"].update({"sft": entry})
    return path.read_text(encoding="utf-8")


def test_what_is_kept_stays_to_the_byte(lock: Path) -> None:
    text = add(modify, lock, {"cmd": "x"})
    assert text == LOCK + "  sft:\n    cmd: x\n"


def test_what_is_added_reads_as_dvc_wrote_it(lock: Path) -> None:
    entry = {
        **ENTRY,
        "params": {"params.yaml": {"sft": {**ENTRY["params"]["params.yaml"]["sft"], "n": [1, 2]}}},
    }
    ours = add(modify, lock, entry)
    lock.write_text(LOCK, encoding="utf-8")
    assert ours == add(modify_yaml, lock, entry)
    assert load_yaml(str(lock))["stages"]["sft"] == entry


def test_tuples_are_lists_and_nothing_stays_nothing(lock: Path) -> None:
    add(modify, lock, {**ENTRY, "null": None, "none": "null", "long": "a word " * 40})
    read = load_yaml(str(lock))["stages"]["sft"]
    assert read["params"]["params.yaml"]["sft"]["n"] == [1, 2]
    assert (read["null"], read["none"], read["long"]) == (None, "null", "a word " * 40)


def test_the_first_stage_makes_the_file(tmp_path: Path) -> None:
    with modify(str(tmp_path / "dvc.lock")) as data:
        data.update({"schema": "2.0", "stages": {"sft": {"cmd": "x"}}})
    assert (tmp_path / "dvc.lock").read_text() == "schema: '2.0'\nstages:\n  sft:\n    cmd: x\n"


def test_a_lock_is_not_written_when_the_change_fails(lock: Path) -> None:
    with pytest.raises(KeyError), modify(str(lock)) as data:
        data["stages"]["none"]["cmd"] = "x"
    assert lock.read_text(encoding="utf-8") == LOCK


def test_other_files_keep_their_comments(tmp_path: Path) -> None:
    path = tmp_path / "dvc.yaml"
    path.write_text("# why\nstages:\n  sft:\n    cmd: x  # what\n")
    with modify(str(path)) as data:
        data["stages"]["sft"]["cmd"] = "y"
    assert path.read_text() == "# why\nstages:\n  sft:\n    cmd: y  # what\n"


def test_dvc_still_writes_its_lock_by_that_name() -> None:
    assert dvcfile.modify_yaml is modify_yaml
