"""Which outputs of ingest added data leave as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.planning.expectations import expected_outputs
from flows.planning.model import Reason

ADDED = [Reason("data", "data/sources")]
FIRST = {"ingest": {"source": "files", "derive": "first"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A workspace whose last ingest read the version 001-trl."""
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/ingest.json").write_text(json.dumps({"sources": {"001-trl": {}}}))
    version(tmp_path, "001-trl", "preferences")
    return tmp_path


def version(root: Path, name: str, *kinds: str) -> None:
    folder = root / "data/sources" / name
    folder.mkdir(parents=True)
    for kind in kinds:
        (folder / f"{kind}.jsonl").write_text("{}\n")


def kept(root: Path, params=FIRST, reasons=ADDED) -> set[str]:
    return {Path(name).stem for name in expected_outputs(root, "ingest", reasons, params)}


def test_added_comparisons_touch_preferences_judge_and_what_is_held_out(root):
    version(root, "002-trl", "preferences")
    assert kept(root) == {"text", "demonstrations", "unpaired", "prompts", "evaluation"}


def test_added_demonstrations_touch_no_comparison(root):
    version(root, "002-alpaca", "demonstrations")
    assert kept(root) == {"text", "preferences", "judge", "unpaired", "prompts", "evaluation"}


def test_added_labels_touch_no_comparison(root):
    version(root, "002-kto", "unpaired")
    assert kept(root) == {"text", "demonstrations", "preferences", "judge", "prompts", "evaluation"}


def test_nothing_is_foretold_where_more_may_change(root):
    assert kept(root) == set(), "nothing was added: a version was changed by hand"
    version(root, "002-trl", "preferences")
    assert kept(root, reasons=[*ADDED, Reason("parameter", "ingest.rl_share", 0.2, 0.3)]) == set()
    assert kept(root, {"ingest": {"source": "files", "derive": "all"}}) == set()
    version(root, "003-native", "evaluation")
    assert kept(root) == set(), "named evaluation prompts take theirs from other kinds"


def test_a_version_before_the_others_is_no_addition(root):
    version(root, "000-trl", "preferences")
    assert kept(root) == set()


def test_a_run_that_goes_on_found_no_leak(root):
    assert expected_outputs(root, "validate-leaks", [], {}) == {"metrics/validate-leaks.json"}
    edited = [Reason("code", "tasks/validate_leaks.py")]
    assert expected_outputs(root, "validate-leaks", edited, {}) == set()
