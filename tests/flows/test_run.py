"""`prefloop run`: parameters written, stages run side by side, outputs never overwritten, failures told."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(finished, prefect_api):
    return replace(finished, variables={"PREFECT_API_URL": prefect_api})


@pytest.fixture
def served(project, prefect_api):
    return replace(project, variables={"PREFECT_API_URL": prefect_api})


ALL = {"ingest", "sft", "ppo", "dpo", "evaluate@sft", "evaluate@ppo", "evaluate@dpo", "report"}


def test_a_run_ends_with_the_policies_and_a_second_one_has_nothing_to_do(project):
    output = project.prefloop("run")
    assert project.stages_ran() == ALL
    assert "1.00 [0.90, 1.10]" in output
    assert "report: reports/report.html" in output
    assert "8 ran" in output
    assert "nothing changed" in project.prefloop("run")
    assert project.ran() == []
    took = project.plan()["sft"]["past_seconds"]
    assert took > 0


def test_set_writes_the_parameter_and_runs_what_reads_it(finished):
    output = finished.prefloop("run", "--set", "ppo.kl_coef=0.1")
    assert "params.yaml: ppo.kl_coef: 0.05 -> 0.1" in output
    assert finished.stages_ran() == {"ppo", "evaluate@ppo", "report"}
    assert "kl_coef: 0.1\n" in (finished.root / "params.yaml").read_text()


def test_independent_stages_run_side_by_side(finished):
    finished.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    finished.edit("params.yaml", "beta: 0.1", "beta: 0.2")
    output = finished.prefloop("run", STEPS_PPO="60", STEPS_DPO="60")
    steps = [line.split()[0] for line in output.splitlines() if "  step " in line]
    changes = sum(1 for before, after in itertools.pairwise(steps) if before != after)
    assert changes > 5, "one stage ran after the other"


def test_one_job_runs_one_stage_at_a_time(finished):
    finished.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    finished.edit("params.yaml", "beta: 0.1", "beta: 0.2")
    output = finished.prefloop("run", "--jobs", "1", STEPS_PPO="10", STEPS_DPO="10")
    steps = [line.split()[0] for line in output.splitlines() if "  step " in line]
    assert sum(1 for before, after in itertools.pairwise(steps) if before != after) == 1


def test_a_failed_stage_is_told_and_what_does_not_need_it_goes_on(served):
    output = served.prefloop("run", code=3, FAIL="ppo")
    assert "stage ppo failed with exit code 3" in output
    assert "the data set has no row" in output
    assert "not run: evaluate@ppo, report" in output
    assert {"dpo", "evaluate@dpo", "evaluate@sft"} <= served.stages_ran()
    served.prefloop("run")
    assert served.stages_ran() == {"ppo", "evaluate@ppo", "report"}


def test_an_output_changed_by_hand_is_refused_then_rescued(finished):
    weights = finished.root / "models/sft/weights"
    weights.chmod(0o644)
    weights.unlink()
    weights.write_text("by hand")
    finished.edit("params.yaml", "epochs: 1 ", "epochs: 2 ")
    output = finished.prefloop("run", code=6)
    assert "models/sft (written by stage sft)" in output
    assert "change what trains it" in output
    assert weights.read_text() == "by hand"
    assert finished.ran() == []
    output = finished.prefloop("run", "sft", "--force")
    assert "models/sft was changed by hand: moved to .prefloop/rescued/" in output
    rescued = next((finished.root / ".prefloop/rescued").glob("*/models/sft/weights"))
    assert rescued.read_text() == "by hand"
    assert weights.read_text() != "by hand"


def test_force_runs_the_named_stage_alone(finished):
    finished.prefloop("run", "dpo", "--force")
    assert finished.stages_ran() == {"dpo"}


def test_json_goes_to_standard_output(finished):
    output = finished.shell_prefloop("run", "--json")
    values = json.loads(output)
    assert values["exit_code"] == 0
    assert values["stages"]["sft"] == "skipped"
    assert values["policies"]["ppo"]["gold"]["ci95"] == [0.9, 1.1]


def test_accept_keeps_results_over_a_code_edit_and_the_reason(finished):
    finished.edit("tasks/sft.py", "1", "2")
    finished.prefloop("accept", "sft", "--why", "a comment was reworded")
    assert {stage["action"] for stage in finished.plan().values()} == {"skip"}
    reasons = [json.loads(line) for line in (finished.root / "accepted.jsonl").read_text().splitlines()]
    assert reasons[0]["stage"] == "sft"
    assert reasons[0]["why"] == "a comment was reworded"
    assert reasons[0]["differences"] == ["tasks/sft.py changed"]
    finished.edit("tasks/sft.py", "2", "3")
    assert [reason["text"] for reason in finished.plan()["sft"]["reasons"]] == ["tasks/sft.py changed"]


def test_accept_refuses_what_is_more_than_code(finished):
    finished.edit("params.yaml", "epochs: 1 ", "epochs: 2 ")
    output = finished.prefloop("accept", "sft", "--why", "it will not matter", code=2)
    assert "sft.epochs: 1 -> 2" in output
    assert finished.plan()["sft"]["action"] == "run"


def test_status_tells_what_is_there(finished):
    output = finished.prefloop("status")
    assert "no run is live" in output
    assert "8 stages are up to date" in output
