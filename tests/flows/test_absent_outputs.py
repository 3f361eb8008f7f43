"""Outputs that workers made and that are in the remote alone: done, fetched when they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.planning.planner import open_repo
from flows.workers.data import push, take_over
from flows.workers.exchange import open_exchange
from flows.workers.here import bring_model

pytestmark = pytest.mark.slow


def sent_away(project, tmp_path: Path, monkeypatch) -> Path:
    """Everything is in a remote, models nowhere else; returns the folder of the remote's objects."""
    monkeypatch.setenv("PREFLOOP_REMOTE", str(tmp_path / "shared"))
    open_exchange(project.root)
    repo = open_repo(project.root)
    outs = [out for out in repo.index.outs if out.use_cache]
    push(repo, outs)
    for out in outs:
        if str(out).startswith("models/"):
            tree = out.get_dir_cache()
            shutil.rmtree(out.fs_path)
            for _, _, entry in tree:
                Path(out.cache.oid_to_path(entry.value)).unlink(missing_ok=True)
    return tmp_path / "shared/data/files/md5"


def test_an_absent_output_is_done_while_the_remote_has_all_of_it(finished, tmp_path, monkeypatch):
    objects = sent_away(finished, tmp_path, monkeypatch)
    assert {stage["action"] for stage in finished.plan().values()} == {"skip"}
    assert "nothing changed" in finished.prefloop("run")
    assert "8 stages are up to date" in finished.prefloop("status")
    assert not any((finished.root / "models").iterdir())
    repo = open_repo(finished.root)
    out = next(out for out in repo.index.outs if str(out) == "models/ppo")
    (weights,) = (str(entry.value) for _, _, entry in out.get_dir_cache())
    (objects / weights[:2] / weights[2:]).unlink()
    plan = finished.plan()
    assert plan["ppo"]["action"] == "run"
    assert plan["ppo"]["reasons"][0]["text"] == "models/ppo is missing"
    assert plan["dpo"]["action"] == "skip"


def test_what_a_stage_reads_here_is_fetched_and_nothing_else(finished, tmp_path, monkeypatch):
    sent_away(finished, tmp_path, monkeypatch)
    finished.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    output = finished.prefloop("run", "ppo")
    assert "models/sft was fetched" in output
    assert finished.stages_ran() == {"ppo"}
    assert {path.name for path in (finished.root / "models").iterdir()} == {"sft", "ppo"}


def test_small_files_that_were_removed_come_back_without_the_weights(finished, tmp_path, monkeypatch):
    sent_away(finished, tmp_path, monkeypatch)
    before = (finished.root / "runs/sft.json").read_bytes()
    (finished.root / "runs/sft.json").unlink()
    assert finished.plan()["sft"]["action"] == "restore"
    finished.prefloop("run")
    assert (finished.root / "runs/sft.json").read_bytes() == before
    assert not (finished.root / "models/sft").exists()
    assert finished.stages_ran() == set()


def test_a_hand_edited_output_is_still_refused(finished, tmp_path, monkeypatch):
    sent_away(finished, tmp_path, monkeypatch)
    (finished.root / "metrics/evaluate/ppo.json").write_text("{}")
    output = finished.prefloop("run", code=6)
    assert "metrics/evaluate/ppo.json (written by stage evaluate@ppo)" in output
    assert (finished.root / "metrics/evaluate/ppo.json").read_text() == "{}"


def test_a_model_is_fetched_by_its_name(finished, tmp_path, monkeypatch):
    sent_away(finished, tmp_path, monkeypatch)
    said: list[str] = []
    bring_model(finished.root, "dpo", said.append)
    assert (finished.root / "models/dpo/weights").exists()
    assert "dvc pull models/dpo does the same" in said[0]
    bring_model(finished.root, "no-such-model", said.append)
    assert len(said) == 1


def test_a_remote_that_is_away_is_said_and_nothing_runs_instead(finished, tmp_path, monkeypatch):
    sent_away(finished, tmp_path, monkeypatch)
    shutil.move(tmp_path / "shared", tmp_path / "elsewhere")
    assert "where workers left it, is not there" in finished.prefloop("run", code=7)
    assert finished.stages_ran() == set()
    shutil.move(tmp_path / "elsewhere", tmp_path / "shared")
    assert "nothing changed" in finished.prefloop("run")


def test_a_model_whose_files_equal_a_small_output_comes_home(finished, tmp_path, monkeypatch):
    """Its content is here anyway: left away, it would count as restorable, and be asked for in every run."""
    weights, record = finished.root / "models/sft/weights", finished.root / "runs/sft.json"
    content = record.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    finished.dvc("commit", "--force", "sft")
    monkeypatch.setenv("PREFLOOP_REMOTE", str(tmp_path / "shared"))
    open_exchange(finished.root)
    repo = open_repo(finished.root)
    out = next(out for out in repo.index.outs if str(out) == "models/sft")
    push(repo, [out for out in repo.index.outs if out.use_cache])
    Path(out.cache.oid_to_path(out.hash_info.value)).unlink()  # its listing alone is not here
    shutil.rmtree(finished.root / "models/sft")
    take_over(finished.root, "sft")
    assert weights.read_bytes() == content
    assert finished.plan()["sft"]["action"] == "skip"
