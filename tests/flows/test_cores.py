"""Which stages are taken to need every core."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flows.cores import device_of, taking_every_core

PARAMS = """
compute: {threads: 2}
base: {threads: 0}
sft: {threads: 1}
reward: {threads: 4}
policies: {ppo: {ppo: {}, wide: {threads: 3}}}
ppo: {threads: 1}
promote: {by: gold}
"""
STAGES = ("ingest", "base", "sft", "reward", "ppo@ppo", "ppo@wide", "promote", "validate@text")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/environment.json").write_text('{"device": "cpu"}')
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    return tmp_path


def test_it_is_those_whose_threads_are_as_many_as_cores(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert taking_every_core(workspace, STAGES) == {"base", "reward", "ppo@wide"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert taking_every_core(workspace, STAGES) == {"reward"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert taking_every_core(workspace, STAGES) == set()


def test_no_threads_named_are_all_there_are(workspace: Path) -> None:
    (workspace / "params.yaml").write_text(PARAMS.replace("{threads: 2}", "{threads: 0}"))
    assert "base" in taking_every_core(workspace, STAGES)


def test_on_a_gpu_threads_are_not_what_counts(workspace: Path) -> None:
    (workspace / "runs/environment.json").write_text('{"device": "cuda"}')
    assert taking_every_core(workspace, STAGES) == set()
    (workspace / "runs/environment.json").unlink()
    assert device_of(workspace) == ""
    assert taking_every_core(workspace, STAGES) == set()
