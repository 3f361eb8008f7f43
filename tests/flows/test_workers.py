"""Stages on a pool with a real Prefect server and real worker processes on loopback, and what kills them."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from flows.placement import remember
from flows.planning.planner import open_repo
from flows.workers.data import produced_inputs
from tests.flows.workers_live import POOL, Live

pytestmark = [pytest.mark.slow, pytest.mark.servers]


@pytest.fixture(scope="module")
def pool(project_template, tmp_path_factory) -> Iterator[Live]:
    """One server for all tests here, and worker `first`; each test has a workspace of its own."""
    made = Live(tmp_path_factory.mktemp("live"), project_template / ".prefloop/prefect/prefect.db")
    try:
        made.start_worker("first")
        yield made
    finally:
        made.close()


@pytest.fixture
def small(project):
    """A workspace with four stages: ingest and report here, sft and its evaluation on a known pool."""
    project.edit("params.yaml", "policies: [sft, ppo, dpo]", "policies: [sft]")
    entries = "{sft: {gpu: 1, pool: prefloop}, ppo: {pool: prefloop}, evaluate: {pool: prefloop}}"
    project.edit(
        "params.yaml",
        "lost_seconds: 60",
        f"lost_seconds: 60\n  place: pools\n  stages: {entries}\n  pools: {{}}",
    )
    remember(project.root, POOL, {"device": "cuda", "threads": 2})
    return project


def weights(project):
    project.dvc("pull", "models/sft")
    return (project.root / "models/sft/weights").read_bytes()


def finished_weights(finished_template):
    return (finished_template / "models/sft/weights").read_bytes()


def started(project, pool: Live, target: str = "sft", step: int = 5):
    """A run whose stage sft trains on worker `first`."""
    pool.forget()
    run = project.start("run", target, **pool.shared)
    project.wait_until(lambda: pool.steps("first", "sft") >= step or run.poll() is not None)
    assert run.poll() is None, run.communicate()[0]
    return run


def ended(run) -> str:
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0, output
    return output


def test_stages_run_where_they_say_and_their_outputs_come_home(small, pool, finished_template):
    small.edit("params.yaml", "pools: {}", "pools: {prefloop: {gpus: 8}}")
    (small.root / ".prefloop/pools/prefloop.json").unlink()
    before = len(pool.attempts())
    run = started(small, pool, "report", step=1)
    with pool.client() as client:
        limit = client.read_global_concurrency_limit_by_name("prefloop-gpu-prefloop")
        assert (limit.limit, limit.active_slots) == (8, 1), "it holds what it asked for while it runs"
    output = ended(run)
    assert "[on pool prefloop, 1 GPU]" in output
    assert "sft  on pool prefloop: Completed" in output
    assert small.stages_ran() == {"ingest", "report"}
    assert pool.ran("first") == {"sft": [0], "evaluate@sft": [0]}
    assert weights(small) == finished_weights(finished_template)
    with pool.client() as client:
        assert client.read_global_concurrency_limit_by_name("prefloop-gpu-prefloop").active_slots == 0
    assert [name for name, _, _ in pool.attempts()[before:]] == ["", "sft", "evaluate@sft"]

    assert "nothing changed" in small.prefloop("run", "report"), "without a server: no worker is asked"
    values = json.loads(small.shell_prefloop("plan", "report", "--json"))
    assert {stage["stage"]: stage["place"]["pool"] for stage in values} == {
        "ingest": None, "sft": POOL, "evaluate@sft": POOL, "report": None,
    }  # fmt: skip
    pool.forget()
    small.edit("params.yaml", "gpu: 1,", "gpu: 9,")
    small.edit("params.yaml", "learning_rate: 0.001", "learning_rate: 0.002")
    output = small.prefloop("run", "report", code=2, **pool.shared)
    assert "stage sft asks for 9 GPUs, and pool prefloop has 8" in output
    assert pool.ran("first") == {}


def test_a_stage_survives_the_kill_of_trainer_flow_process_and_coordinator(small, pool, finished_template):
    before = len(pool.attempts())
    run = started(small, pool)
    pool.trainer("first", "sft").kill()
    small.wait_until(lambda: pool.steps("first", "sft") >= 15)
    pool.flow_process("first", "sft").kill()
    small.wait_until(lambda: pool.steps("first", "sft") >= 25)
    run.kill()
    told = run.communicate()[0]
    assert "sft  attempt 1 of 4 was lost to the infrastructure: stage sft on pool prefloop: stage sft" in told
    assert "sft  attempt 2 of 4 was lost to the infrastructure: stage sft on pool prefloop: " in told
    output = small.prefloop("run", "sft", **pool.shared)
    joined, ended_meanwhile = "sft  joins attempt 3, which is on", "sft  takes what attempt 3 on pool"
    assert joined in output or ended_meanwhile in output
    assert weights(small) == finished_weights(finished_template)
    began = pool.ran("first")
    assert len(began["sft"]) == 3
    assert began["sft"][0] == 0
    assert began["sft"][1] >= 5, "it began anew"
    assert began["sft"][2] >= 15
    assert pool.attempts()[before:] == [
        ("sft", "CRASHED", False),
        ("sft", "CRASHED", False),
        ("sft", "COMPLETED", False),
    ]


def test_a_lost_machine_is_noticed_and_its_late_result_is_not_taken(small, pool, finished_template):
    """The machine stands still: its worker is killed, and the flow process is stopped, to go on later."""
    small.edit("params.yaml", "lost_seconds: 60", "lost_seconds: 12")
    before = len(pool.attempts())
    run = started(small, pool)
    stopped = pool.flow_process("first", "sft")
    stopped.send_signal(signal.SIGSTOP)
    pool.workers["first"].kill(tree=False)
    pool.start_worker("second")
    small.wait_until(lambda: pool.steps("second", "sft") >= 3)
    stopped.send_signal(signal.SIGCONT)
    output = ended(run)
    assert "no sign of life of its process for" in output
    assert output.count("was lost to the infrastructure") == 1
    small.wait_until(lambda: not stopped.is_running() or stopped.status() == "zombie", 60)
    assert pool.trainer("first", "sft") is None, "the lost attempt goes on beside the one that counts"
    assert weights(small) == finished_weights(finished_template)
    first, second = pool.attempts()[before:]
    assert first[2], "the first attempt still counts"
    assert second == ("sft", "COMPLETED", False)
    pool.workers["second"].stop()
    pool.workers["first"].start()


def test_a_server_that_is_away_for_a_while_is_waited_for(small, pool, finished_template):
    run = started(small, pool)
    pool.server.kill()
    small.wait_until(lambda: pool.steps("first", "sft") >= 15)  # it trains on
    pool.server.start()
    output = ended(run)
    assert "the Prefect server does not answer: waiting up to 900 s for it" in output
    assert "the Prefect server answers again" in output
    assert weights(small) == finished_weights(finished_template)
    assert pool.ran("first")["sft"] == [0], "what it learned meanwhile was lost"
    pool.revive()


def test_what_a_stage_did_itself_is_not_tried_again(small, pool):
    small.edit("tasks/sft.py", "LEARNING = 1", "import sys\nsys.exit('NaN at step 3')\nLEARNING = 1")
    before = len(pool.attempts())
    output = small.prefloop("run", "sft", code=1, **pool.shared)
    assert "stage sft failed with exit code 1" in output
    assert "NaN at step 3" in output
    assert "was lost" not in output
    assert [name for name, _, _ in pool.attempts()[before:]] == ["sft"]


def test_weights_stay_with_the_workers_until_somebody_reads_them(project, pool, monkeypatch):
    monkeypatch.setenv("DEVICE", "cuda")  # one environment, here and there
    pool.forget()
    output = project.prefloop("run", "--on", POOL, **pool.shared)
    assert "sft  on pool prefloop: Completed" in output
    assert project.stages_ran() == {"ingest", "report"}, "here ran what does not compute with models"
    assert set().union(*map(pool.ran, pool.workers)) == {
        "sft", "ppo", "dpo", "evaluate@sft", "evaluate@ppo", "evaluate@dpo",
    }  # fmt: skip
    assert not (project.root / "models").exists()
    assert (project.root / "metrics/evaluate/ppo.json").exists()
    assert (project.root / "runs/sft.json").exists()
    assert {stage["action"] for stage in project.plan().values()} == {"skip"}
    project.edit("params.yaml", "batch_size: 8", "batch_size: 16")
    output = project.prefloop("run", "evaluate@ppo")
    assert "models/ppo was fetched from the workers' remote" in output
    assert project.stages_ran() == {"evaluate@ppo"}
    assert [path.name for path in (project.root / "models").iterdir()] == ["ppo"], "what it reads, no more"
    project.dvc("pull", "models/dpo")
    assert (project.root / "models/dpo/weights").exists()


def test_without_a_server_that_workers_reach_the_pool_is_refused(project):
    output = project.prefloop("run", "--on", "prefloop", code=2)
    assert "pool prefloop needs a Prefect server that workers reach" in output


def test_inputs_of_a_stage_are_what_other_stages_write(finished):
    repo = open_repo(finished.root)

    def inputs(stage: str) -> list[str]:
        return sorted(map(str, produced_inputs(repo, stage)))

    assert inputs("ppo") == ["data/raw/preferences.jsonl", "models/sft"]
    assert inputs("report") == [f"metrics/evaluate/{name}.json" for name in ("dpo", "ppo", "sft")]
    assert inputs("ingest") == []
