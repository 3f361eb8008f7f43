"""Kills, signals and collisions: nothing is left over, nothing is lost, the next run goes on."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys

import pytest

from flows.leftovers import mark_unfinished, unfinished

pytestmark = pytest.mark.slow

SLOW = {"STEPS_SFT": "80"}


def started_training(project, **extra):
    """A run in the middle of stage sft."""
    run = project.start("run", **SLOW, **extra)
    project.wait_for_process("tasks/sft.py sft")
    step = project.root / ".prefloop/scratch/sft/step"
    project.wait_until(lambda: step.exists() and int(step.read_text() or 0) >= 5)
    return run


def weights(project):
    return weights_of(project.root)


def weights_of(root):
    return {str(file.relative_to(root)): file.read_bytes() for file in root.glob("models/*/*")}


@pytest.fixture(scope="session")
def undisturbed(finished_template):
    return weights_of(finished_template)


def resumed_after(project) -> int:
    """The step from which stage sft went on, in its last run."""
    return int([line.split()[1] for line in project.ran() if line.startswith("sft ")][-1])


@pytest.mark.parametrize("victim", ["trainer", "dvc", "flow", "server"])
def test_kill_9_of_any_process_is_survived(project, undisturbed, victim):
    run = started_training(project)
    words = {
        "trainer": "tasks/sft.py sft",
        "dvc": "flows.dvc_process",
        "flow": "flows.cli.main",
        "server": "flows.server_process",
    }
    project.wait_for_process(words[victim]).send_signal(signal.SIGKILL)
    run.communicate(timeout=300)
    project.wait_until(lambda: not project.processes(), 120)
    finished_by_itself = run.returncode == 0
    assert finished_by_itself == (victim != "flow")
    if victim == "flow":
        project.prefloop("run")
    if victim != "server":
        assert resumed_after(project) >= 5, "it began anew"
    assert "nothing changed" in project.prefloop("run")
    assert weights(project) == undisturbed


def test_a_stage_that_is_killed_each_time_fails_and_says_so(project):
    project.edit("params.yaml", "retry_seconds: 0.2", "retry_seconds: 0.1\n  retries: 1")
    project.edit("tasks/sft.py", "LEARNING = 1", "import os\nos.kill(os.getpid(), 9)\nLEARNING = 1")
    output = project.prefloop("run", "sft", code=137)
    assert "sft  attempt 1 of 2 was lost to the infrastructure: a process of the stage was killed" in output
    assert "(2 attempts, each lost to the infrastructure)" in output
    assert project.processes() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_and_the_next_goes_on(project, undisturbed, number, code):
    run = started_training(project)
    run.send_signal(number)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == code, output
    assert "stopped; run again to go on" in output
    assert project.processes() == []
    project.ran()
    project.prefloop("run", **SLOW)
    assert resumed_after(project) >= 5
    assert weights(project) == undisturbed


def test_a_second_run_is_refused_and_names_the_first(project):
    run = started_training(project)
    output = project.prefloop("run", code=6)
    assert f"pid {run.pid}" in output
    assert run.poll() is None
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=300)


def test_a_run_beside_a_stage_run_by_hand_is_refused(project):
    project.dvc("repro", "ingest")
    by_hand = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "sft"],
        cwd=project.root,
        env=project.environment(**SLOW),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    project.wait_until(lambda: (project.root / ".prefloop/scratch/sft/step").exists())
    trainers = [process for process in project.processes() if "tasks/sft.py" in process.cmdline()]
    output = project.prefloop("run", code=6)
    assert "run by hand" in output
    assert [f"pid {process.pid}" in output for process in trainers].count(True) == 1
    assert by_hand.wait(timeout=300) == 0


def test_kill_9_of_a_bare_dvc_ends_its_trainer(project):
    project.dvc("repro", "ingest")
    by_hand = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "sft"],
        cwd=project.root,
        env=project.environment(STEPS_SFT="1000"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    project.wait_for_process("tasks/sft.py sft")
    project.wait_until(lambda: (project.root / ".prefloop/scratch/sft/step").exists())
    by_hand.kill()
    by_hand.wait()
    project.wait_until(lambda: not project.processes(), 120)
    project.prefloop("run")


def test_a_named_server_that_does_not_answer_is_told(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        output = project.prefloop("run", code=6, PREFECT_API_URL=address)
    assert f"{address} does not answer" in output
    assert project.ran() == []


def test_a_prefect_database_that_cannot_be_opened_is_told(project):
    database = project.root / ".prefloop/prefect/prefect.db"
    database.unlink()
    database.mkdir()
    output = project.prefloop("run", code=6)
    assert "Prefect's server did not start" in output
    assert project.processes() == []


def test_a_full_disk_loses_nothing(finished):
    """RLIMIT_FSIZE stands in for a full disk: a write past the limit fails in every process of the run."""
    before = weights(finished)
    finished.edit("params.yaml", "epochs: 1 ", "epochs: 2 ")
    run = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "run"],
        cwd=finished.root,
        env=finished.environment(),
        capture_output=True,
        text=True,
        timeout=580,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
    )
    assert run.returncode not in (0, None)
    assert finished.processes() == []
    finished.edit("params.yaml", "epochs: 2 ", "epochs: 1 ")
    finished.prefloop("run")
    assert weights(finished) == before


def test_work_cut_off_after_the_stage_ended_is_not_taken_for_a_hand_edit(project):
    """Outputs that are there although DVC did not come to record them were made by the stage."""
    project.dvc("repro", "ingest")
    (project.root / ".prefloop/unfinished").mkdir(parents=True)
    (project.root / ".prefloop/unfinished/sft").write_text("sft")
    (project.root / "models/sft").mkdir(parents=True)
    (project.root / "models/sft/weights").write_text("of a stage that was cut off")
    assert project.plan()["sft"]["edited_outputs"] == []
    os.remove(project.root / ".prefloop/unfinished/sft")
    assert project.plan()["sft"]["edited_outputs"] == ["models/sft"]


def test_a_stage_that_was_recorded_before_its_run_was_cut_off_is_finished(finished):
    """A mark that stayed would have this edit overwritten by the next run."""
    mark_unfinished(finished.root, "sft")
    mark_unfinished(finished.root, "evaluate@sft")
    assert "up to date" in finished.prefloop("run")
    assert unfinished(finished.root) == set()
    (finished.root / "models/sft/weights").write_text("edited by hand")
    assert finished.plan()["sft"]["edited_outputs"] == ["models/sft"]
