"""A tracking store of a test's own, without the seconds that making a database takes."""

from __future__ import annotations

import shutil

import pytest

from tasks.support.mlflow_store import local_folder


@pytest.fixture
def tracked(tmp_path, monkeypatch, fresh_store):
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_PIPELINE_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    # The copied database knows the experiment of the folder it was made in: a test gets one of its own.
    (tmp_path / "params.yaml").write_text(
        "seed: 0\nsft: {learning_rate: 0.1}\npromote: {}\ntracking: {experiment: test}\n"
    )
    local_folder().mkdir(parents=True)
    shutil.copy(fresh_store, local_folder() / "mlflow.db")
    return tmp_path
