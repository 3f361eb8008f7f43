"""A stage as a process: whole outputs, one writer, signals, kill -9, full disk. Real processes and faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.support.costs import COSTS, cost_of
from tasks.support.spent import Spent

REPOSITORY = Path(__file__).parents[2]

TRAINER = """
import json, sys, time
from prefloop.config.sft import SFTConfig
from prefloop.errors import DataError, StopRequested
from tasks.support.stage import Stage

STEPS, pause, fault = 30, float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
with Stage.open("sft", SFTConfig) as stage:
    state = stage.scratch / "state.json"
    first = json.loads(state.read_text()) if state.exists() else 0
    stage.recorder.resume(first)
    for step in range(first + 1, STEPS + 1):
        if stage.recorder.stop_requested():
            raise StopRequested
        time.sleep(pause)
        stage.recorder.log(step, STEPS, {"loss": 1 / step, "odd": float("nan")})
        if step % 5 == 0:
            stage.recorder.checkpoint(step, stage.scratch)
            state.write_text(json.dumps(step))
    if fault == "data":
        raise DataError("rows.jsonl, line 3 is no JSON", "mend it")
    if fault == "bug":
        raise KeyError("loss")
    with stage.output("models/sft") as folder:
        (folder / "weights").write_bytes(b"w" * 1_000_000)
    stage.metrics({"loss": {"final": 0.5, "best": float("nan")}})
"""


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "params.yaml").write_text("seed: 0\nsft: {}\npromote: {}\n")
    (tmp_path / "trainer.py").write_text(TRAINER)
    return tmp_path


def start(workspace, *arguments, **options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFLOOP", "DVC"))}
    environment |= {"PYTHONPATH": str(REPOSITORY), "PREFLOOP_TRACKING": "off"}
    return subprocess.Popen(
        [sys.executable, "trainer.py", *map(str, arguments)],
        cwd=workspace, env=environment, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def run(workspace, *arguments, **options):
    process = start(workspace, *arguments, **options)
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


def wait_for_step(workspace, step):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for curve in workspace.glob(".prefloop/scratch/sft/*/curve.jsonl"):
            if len(curve.read_text().splitlines()) >= step:
                return
        time.sleep(0.02)
    raise AssertionError("the stage did not come that far")


def scratch(workspace):
    return [path for path in workspace.glob(".prefloop/scratch/sft/*") if path.is_dir()]


def test_a_good_end_leaves_outputs_records_and_no_scratch(workspace):
    code, stderr = run(workspace, 0)
    assert code == 0, stderr
    assert "step 30/30" in stderr
    assert json.loads((workspace / "metrics/sft.json").read_text()) == {"loss": {"best": None, "final": 0.5}}
    record = json.loads((workspace / "runs/sft.json").read_text())
    assert record["stage"] == "sft"
    assert record["resumed_from_step"] is None
    assert record["wall_seconds"] > 0
    assert record["peak_rss_mib"] > 5
    assert not {"gpu_seconds", "peak_gpu_mib", "gpu_energy_joules"} & record.keys()  # it never asked for one
    (spool,) = (workspace / ".prefloop/spool").glob("*.jsonl")
    events = [json.loads(line) for line in spool.read_text().splitlines()]
    (cost,) = [e["values"] for e in events if "cost/cpu_seconds" in e.get("values", ())]
    assert {name: cost[f"cost/{name}"] for name in COSTS if name in record} == cost_of(record)
    assert (workspace / "plots/sft.csv").read_text().splitlines()[0] == "step,loss"
    assert scratch(workspace) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_between_steps_and_the_next_run_goes_on(workspace, number, code):
    process = start(workspace, 0.05)
    wait_for_step(workspace, 7)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "run again to go on" in stderr
    assert not (workspace / "models/sft").exists()
    assert run(workspace, 0)[0] == 0
    assert json.loads((workspace / "runs/sft.json").read_text())["resumed_from_step"] % 5 == 0


def test_kill_9_then_the_same_bytes_as_an_undisturbed_run(workspace, tmp_path_factory):
    process = start(workspace, 0.03)
    wait_for_step(workspace, 12)
    process.kill()
    process.wait()
    assert run(workspace, 0)[0] == 0
    assert json.loads((workspace / "runs/sft.json").read_text())["resumed_from_step"] >= 10
    other = tmp_path_factory.mktemp("undisturbed")
    for name in ("params.yaml", "trainer.py"):
        (other / name).write_bytes((workspace / name).read_bytes())
    assert run(other, 0)[0] == 0
    for output in ("plots/sft.csv", "metrics/sft.json", "models/sft/weights"):
        assert (workspace / output).read_bytes() == (other / output).read_bytes()


def test_a_resumed_stage_has_the_cost_of_all_its_processes(workspace):
    for number in (signal.SIGTERM, signal.SIGINT):
        before = steps_done(workspace)
        process = start(workspace, 0.05)
        wait_for_step(workspace, before + 7)
        process.send_signal(number)
        process.communicate(timeout=30)
    (note,) = workspace.glob(".prefloop/scratch/sft/*/spent.json")
    stopped = json.loads(note.read_text())
    assert run(workspace, 0)[0] == 0
    record = cost_of(json.loads((workspace / "runs/sft.json").read_text()))
    # Each process slept for what it trained: 0.05 s a step, at least 7 steps of each of the two.
    assert stopped["wall_seconds"] > 2 * 7 * 0.05
    costs = [
        event["values"]
        for spool in (workspace / ".prefloop/spool").glob("*.jsonl")
        for event in map(json.loads, spool.read_text().splitlines())
        if "cost/wall_seconds" in event.get("values", ())
    ]
    walls = sorted(cost["cost/wall_seconds"] for cost in costs)
    assert len(walls) == 3
    assert walls[0] < walls[1] <= stopped["wall_seconds"] < walls[2] == record["wall_seconds"]
    assert record["cpu_seconds"] >= stopped["cpu_seconds"] > 0
    assert record["peak_rss_mib"] >= stopped["peak_rss_mib"]


def steps_done(workspace):
    return sum(len(c.read_text().splitlines()) for c in workspace.glob(".prefloop/scratch/sft/*/curve.jsonl"))


def test_what_was_spent_before_a_kill_is_noted_and_a_damaged_note_is_no_matter(tmp_path, monkeypatch):
    spent = Spent(tmp_path)
    assert not spent.due
    monkeypatch.setattr("tasks.support.spent.NOTE_SECONDS", 0.0)
    assert spent.due
    spent.note({"wall_seconds": 2.0, "cpu_seconds": 1.0, "peak_rss_mib": 50.0, "cpu_energy_joules": 9.0})
    spent.note({"wall_seconds": 3.0, "cpu_seconds": 1.5, "peak_rss_mib": 60.0, "cpu_energy_joules": 9.5})
    then = Spent(tmp_path)
    own = {"wall_seconds": 4.0, "cpu_seconds": 4.0, "peak_rss_mib": 40.0}
    assert then.with_own(own) == {"wall_seconds": 7.0, "cpu_seconds": 5.5, "peak_rss_mib": 60.0}
    (tmp_path / "spent.json").write_text("[")
    assert Spent(tmp_path).with_own(own) == own
    (tmp_path / "spent.json").write_text("[1]")
    assert Spent(tmp_path).with_own(own) == own


def test_a_second_writer_is_refused_and_the_holder_named(workspace):
    first = start(workspace, 0.1)
    wait_for_step(workspace, 1)
    code, stderr = run(workspace, 0)
    assert code == 6
    assert str(first.pid) in stderr
    assert "remedy" in stderr
    first.kill()
    first.wait()
    assert run(workspace, 0)[0] == 0  # a killed holder holds nothing


def test_an_error_of_the_user_is_a_message_with_its_exit_code(workspace):
    code, stderr = run(workspace, 0, "data")
    assert code == 3
    assert "sft: rows.jsonl, line 3 is no JSON\n  remedy: mend it" in stderr
    assert "Traceback" not in stderr
    assert len(scratch(workspace)) == 1


def test_an_error_of_ours_keeps_its_traceback_in_a_file(workspace):
    code, stderr = run(workspace, 0, "bug")
    assert code == 1
    assert "Traceback" not in stderr
    (crash,) = (workspace / ".prefloop/crashes").iterdir()
    assert "KeyError: 'loss'" in crash.read_text()


def test_an_unknown_key_is_refused_with_the_nearest(workspace):
    (workspace / "params.yaml").write_text("sft: {learning_rte: 1}\n")
    code, stderr = run(workspace, 0)
    assert code == 2
    assert "did you mean sft.learning_rate?" in stderr


def test_a_full_disk_leaves_the_old_output_and_says_so(workspace):
    import resource

    assert run(workspace, 0)[0] == 0
    before = (workspace / "runs/sft.json").read_bytes()
    (workspace / "models/sft/weights").write_text("old")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    code, stderr = run(workspace, 0, preexec_fn=limit)
    assert code == 6, stderr
    assert "models/sft could not be written" in stderr
    assert (workspace / "models/sft/weights").read_text() == "old"
    assert (workspace / "runs/sft.json").read_bytes() == before
    assert [path.name for path in (workspace / "models").iterdir()] == ["sft"]


def test_two_signals_of_one_cause_count_once(workspace):
    process = start(workspace, 0.05)
    wait_for_step(workspace, 3)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode in (130, 143)
    assert "run again to go on" in stderr
