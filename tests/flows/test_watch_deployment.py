"""The flow that a deployment runs when data changes: what it starts, and what comes back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from flows.watching import deployment
from prefloop.errors import ConfigError, PrefloopError
from tasks.support.locks import held
from tests.flows.watching_live import environment, make_workspace, prompts

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def without_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "get_run_logger", lambda: logging.getLogger("test"))
    for name, value in environment().items():
        monkeypatch.setenv(name, value)


def test_a_batch_is_imported_where_no_watch_lives_and_left_to_one_that_does(tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    (root / "data/sources/rows.txt").unlink()
    # Nothing depends on the data here: the import is all there is to do, and no run starts.
    (root / "dvc.yaml").write_text("stages: {}\n")
    call = deployment.data_change.fn
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    assert call(str(root), rows) == "ran"
    assert prompts(root) == ["p"]
    assert (root / "data/sources/001-native.dvc").exists()
    assert call(str(root), rows) == "ran"
    assert prompts(root) == ["p"], "an event that is delivered twice"
    with held(root / ".prefloop/watch.lock", "a live watch"):
        assert call(str(root), [{**rows[0], "prompt": "q"}]) == "handed over"
    assert prompts(root) == ["p"]
    assert len(list((root / "data/incoming/native").glob("batch-*.jsonl"))) == 1


def test_a_workspace_that_cannot_be_used_fails_the_flow(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no workspace"):
        deployment.data_change.fn(str(tmp_path))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(PrefloopError, match="failed with exit code 2") as caught:
        deployment.data_change.fn(str(tmp_path))
    assert "is no DVC repository" in str(caught.value)
