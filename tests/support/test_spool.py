"""The spool: what a kill may do to it, and what its reader makes of it."""

from __future__ import annotations

import errno
import json

import pytest

from tasks.support import tracking
from tasks.support.spool import SpoolWriter, read_events, read_state, waiting, write_state
from tasks.support.tracking import RunTracker, keep_files


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("PREFLOOP_STATE", raising=False)
    return tmp_path


def events(path, offset=0):
    return [event["kind"] for event, _ in read_events(path, offset)]


def test_events_come_back_in_order_and_from_any_offset():
    spool = SpoolWriter("r")
    for kind in ("start", "metrics", "end"):
        spool.append(kind)
    offsets = [offset for _, offset in read_events(spool.path)]
    assert events(spool.path) == ["start", "metrics", "end"]
    assert events(spool.path, offsets[0]) == ["metrics", "end"]
    assert events(spool.path, offsets[2]) == []


def test_a_torn_last_line_waits_and_a_torn_middle_line_is_passed_over():
    spool = SpoolWriter("r")
    spool.append("start")
    with open(spool.path, "a") as handle:
        handle.write('{"kind": "met')
    assert events(spool.path) == ["start"]
    with open(spool.path, "a") as handle:
        handle.write("\n")
    spool.append("end")
    assert events(spool.path) == ["start", "end"]


def test_waiting_counts_runs_with_undelivered_events():
    spool = SpoolWriter("r")
    spool.append("start")
    assert waiting() == 1
    write_state(spool.path, {"offset": spool.path.stat().st_size})
    assert waiting() == 0
    assert read_state(spool.path)["offset"] > 0


def test_a_full_disk_does_not_stop_the_writer(monkeypatch):
    spool = SpoolWriter("r")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.support.spool.os.fsync", full)
    spool.append("start")
    spool.append("metrics")
    assert spool.error is not None
    assert spool.error.errno == errno.ENOSPC


def test_metric_names_prefixes_and_what_is_left_out(tmp_path):
    tracker = RunTracker("ppo", "run")
    tracker.metrics(
        3, {"loss": 1.5, "eval/kl": 2.0, "bad": float("nan"), "ci95": [0.1, 0.2], "by_kind": {"q": 1}}
    )
    (event,) = [
        json.loads(line) for line in (tmp_path / ".prefloop/spool/run.jsonl").read_text().splitlines()
    ]
    assert event["values"] == {
        "train/loss": 1.5,
        "eval/kl": 2.0,
        "train/ci95.low": 0.1,
        "train/ci95.high": 0.2,
    }


def test_kept_files_outlive_the_folder_they_came_from(tmp_path):
    model = tmp_path / "models" / "sft"
    model.mkdir(parents=True)
    (model / "w").write_text("first")
    kept = keep_files(model, "run")
    (model / "w").unlink()
    (model / "w").write_text("second")
    assert (kept / "w").read_text() == "first"


def test_no_secret_reaches_the_spool(tmp_path):
    tracker = RunTracker("sft", "run")
    tracker.start(params={"hub.token": "hf_abc", "tracking.uri": "https://me:hunter2@h"}, tags={"x": None})
    tracker.tags({"prefloop.error": "cannot open https://me:hunter2@h"})
    text = (tmp_path / ".prefloop/spool/run.jsonl").read_text()
    assert "hunter2" not in text
    assert "hf_abc" not in text


def test_which_models_are_registered(monkeypatch, tmp_path):
    (tmp_path / "params.yaml").write_text("promote: {model: our-policy}\n")
    names = {model: tracking.registered_name(model) for model in ("base", "judge", "sft", "ppo", "reward")}
    assert names == {
        "base": "",
        "judge": "",
        "sft": "our-policy",
        "ppo": "our-policy",
        "reward": "prefloop-reward",
    }
