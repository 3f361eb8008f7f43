"""What `prefloop plan` says about a pipeline that ran, after one thing has changed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

from flows.history import past_cost, past_seconds, remember
from flows.planning.model import Action, Plan, Reason, StagePlan
from flows.planning.planner import make_plan, open_repo
from flows.planning.show import cost_words, duration, plan_lines, summary

STAGES = {"ingest", "sft", "ppo", "dpo", "evaluate@sft", "evaluate@ppo", "evaluate@dpo", "report"}


def actions(plan):
    return {name: stage["action"] for name, stage in plan.items()}


def texts(plan, stage):
    return [reason["text"] for reason in plan[stage]["reasons"]]


def test_nothing_changed_then_everything_is_skipped_and_prefect_is_not_started(finished):
    assert actions(finished.plan()) == dict.fromkeys(STAGES, "skip")
    assert "nothing changed: all 8 stages are up to date" in finished.prefloop("run")
    assert finished.ran() == []
    assert not (finished.root / ".prefloop/logs/prefect-server.log").exists()


def test_nothing_ran_yet_then_everything_runs(project):
    plan = project.plan()
    assert actions(plan) == dict.fromkeys(STAGES, "run")
    assert texts(plan, "sft") == ["never run here"]


def test_a_parameter_touches_its_stage_and_what_reads_that_stage(finished):
    finished.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    plan = finished.plan()
    assert actions(plan) == dict.fromkeys(STAGES, "skip") | {
        "ppo": "run",
        "evaluate@ppo": "maybe",
        "report": "maybe",
    }
    assert texts(plan, "ppo") == ["ppo.kl_coef: 0.05 -> 0.1"]
    assert plan["ppo"]["reasons"][0] | {"text": ""} == {
        "kind": "parameter", "subject": "ppo.kl_coef", "old": 0.05, "new": 0.1, "text": "",
    }  # fmt: skip
    assert texts(plan, "evaluate@ppo") == ["only if models/ppo (ppo) changes"]


def test_a_code_edit_names_the_file(finished):
    finished.edit("tasks/sft.py", "1", "2")
    plan = finished.plan()
    assert plan["ingest"]["action"] == "skip"
    assert texts(plan, "sft") == ["tasks/sft.py changed"]
    assert plan["sft"]["reasons"][0]["kind"] == "code"
    assert {name for name, action in actions(plan).items() if action == "run"} == {"sft"}


def test_code_without_a_record_of_its_files_is_named_as_a_whole(finished):
    (finished.root / "runs/sft.json").chmod(0o644)
    (finished.root / "runs/sft.json").write_text("{}")
    finished.edit("tasks/sft.py", "1", "2")
    assert "its code changed" in texts(finished.plan(), "sft")


def test_an_edit_shows_though_the_environment_was_resolved_before_it(finished):
    finished.edit("tasks/sft.py", "1", "2")
    with contextlib.chdir(finished.root):
        plan = make_plan(open_repo(finished.root))
    assert {stage.name for stage in plan.stages if stage.action is Action.RUN} == {"sft"}


def test_a_lock_that_lists_files_of_code_means_one_run_more(finished):
    lock = finished.root / "dvc.lock"
    kept = re.sub(r"      runs/code.json:\n        sft: \w+\n", "", lock.read_text())
    assert kept != lock.read_text()
    lock.write_text(kept)
    shutil.rmtree(finished.root / ".dvc/cache/runs")  # no such run was kept under a fingerprint
    plan = finished.plan()
    assert {name for name, action in actions(plan).items() if action == "run"} == {"sft"}
    assert texts(plan, "sft")[0].startswith("its code was recorded file by file")


def test_an_edit_taken_back_is_restored(finished):
    finished.edit("tasks/sft.py", "1", "2")
    finished.dvc("repro")
    assert "sft" in finished.stages_ran()
    assert set(actions(finished.plan()).values()) == {"skip"}
    finished.edit("tasks/sft.py", "2", "1")
    plan = finished.plan()
    assert plan["sft"]["action"] == "restore"
    assert texts(plan, "sft") == ["tasks/sft.py changed"]


def test_a_row_added_to_the_sources_makes_only_ingest_certain(finished):
    (finished.root / "data/sources/more.txt").write_text("another row\n")
    plan = finished.plan()
    assert texts(plan, "ingest") == ["data/sources changed"]
    assert {name for name, action in actions(plan).items() if action == "maybe"} == STAGES - {"ingest"}


def test_the_environment_is_compared_key_by_key(finished):
    finished.edit("params.yaml", "threads: 2", "threads: 4")
    plan = finished.plan()
    assert texts(plan, "sft") == ["threads: 2 -> 4"]
    assert plan["sft"]["reasons"][0]["kind"] == "environment"
    assert plan["ingest"]["action"] == plan["evaluate@sft"]["action"].replace("maybe", "skip") == "skip"


def test_a_change_taken_back_is_restored_down_to_the_report(finished):
    finished.edit("params.yaml", "epochs: 1 ", "epochs: 5 ")
    finished.dvc("repro")
    assert finished.stages_ran() == STAGES - {"ingest"}
    finished.edit("params.yaml", "epochs: 5 ", "epochs: 1 ")
    plan = finished.plan()
    assert actions(plan) == dict.fromkeys(STAGES - {"ingest"}, "restore") | {"ingest": "skip"}
    assert texts(plan, "sft") == ["sft.epochs: 5 -> 1"]
    finished.dvc("repro")
    assert finished.ran() == []


def test_a_missing_output_is_restored_and_without_a_cache_made_again(finished):
    shutil.rmtree(finished.root / "models/ppo")
    plan = finished.plan()
    assert plan["ppo"]["action"] == "restore"
    assert texts(plan, "ppo") == ["models/ppo is missing"]
    assert plan["evaluate@ppo"]["action"] == "skip"
    shutil.rmtree(finished.root / ".dvc/cache/runs")
    assert finished.plan()["ppo"]["action"] == "restore"
    shutil.rmtree(finished.root / ".dvc/cache")
    plan = finished.plan()
    assert plan["ppo"]["action"] == "run"


def test_targets_bring_their_ancestors_only(finished):
    finished.edit("params.yaml", "seed: 0", "seed: 1")
    assert set(finished.plan("dpo")) == {"ingest", "sft", "dpo"}
    assert set(finished.plan("evaluate")) == STAGES - {"report"}


def test_an_unknown_stage_is_refused_with_the_nearest(finished):
    output = finished.prefloop("plan", "evalute", code=2)
    assert "there is no stage evalute" in output
    assert "did you mean evaluate?" in output


def test_a_source_that_is_missing_is_named(finished):
    shutil.rmtree(finished.root / "data/sources")
    output = finished.prefloop("plan", code=3)
    assert "data/sources is missing" in output
    assert "remedy: " in output


def test_a_broken_pipeline_file_is_a_configuration_error(finished):
    finished.edit("dvc.yaml", "foreach: ${evaluate.policies}", "foreach: ${evaluate.policy}")
    assert "dvc.yaml cannot be used" in finished.prefloop("plan", code=2)


def test_plan_text_shows_the_cost_of_what_may_run():
    plan = Plan(
        (
            StagePlan("sft", Action.RUN, (), (Reason("parameter", "sft.epochs", 1, 2),), 65.0),
            StagePlan("ppo", Action.MAYBE, ("sft",), (Reason("upstream", "models/sft (sft)"),), 3700.0),
            StagePlan("dpo", Action.MAYBE, ("sft",), (Reason("upstream", "models/sft (sft)"),)),
            StagePlan("base", Action.SKIP, (), (), 10.0),
        )
    )
    lines = plan_lines(plan, skipped=False)
    assert " ".join(lines[0].split()) == "sft runs sft.epochs: 1 -> 2 (took 1 min 05 s)"
    assert " ".join(lines[1].split()) == "ppo may run only if models/sft (sft) changes (took 1 h 01 min)"
    assert len(lines) == 4
    assert summary(plan) == (
        "1 runs, 2 may run, 1 unchanged; past runs of these took 1 h 02 min (1 never ran here)"
    )
    assert duration(59.6) == "1 min 00 s"


def test_plan_text_sums_hours_of_processor_and_gpu_over_what_may_run():
    reason = (Reason("parameter", "sft.epochs", 1, 2),)
    alone = {"wall_seconds": 30.0, "cpu_seconds": 60.0}  # run by a bare `dvc repro`: no duration but its own
    plan = Plan(
        (
            StagePlan("sft", Action.RUN, (), reason, 65.0, {"cpu_seconds": 180.0, "gpu_seconds": 7200.0}),
            StagePlan("ppo", Action.MAYBE, ("sft",), reason, None, alone),
            StagePlan("base", Action.SKIP, (), (), 10.0, {"cpu_seconds": 1e6}),
        )
    )
    assert plan_lines(plan)[0].endswith("(took 1 min 05 s, 0.05 CPU h, 2.00 GPU h)")
    assert plan_lines(plan)[1].endswith("(took 30 s, 0.017 CPU h)")
    assert summary(plan).endswith("; past runs of these took 1 min 35 s, 0.067 CPU h, 2.00 GPU h")


def test_what_a_cost_says_and_leaves_out():
    cost = {"wall_seconds": 90.0, "cpu_seconds": 3600.0, "gpu_energy_joules": 7.2e6, "peak_rss_mib": 1536.0}
    assert cost_words(cost) == "1 min 30 s, 1.00 CPU h, 2.00 kWh of GPUs, at most 1.5 GiB of memory"


def test_history_keeps_the_cost_of_the_run_itself_and_else_asks_the_record(tmp_path):
    (tmp_path / "runs").mkdir()
    record = {"pipeline": "run-1", "wall_seconds": 8.0, "cpu_seconds": 12.0}
    (tmp_path / "runs/sft.json").write_text(json.dumps(record))
    assert past_cost(tmp_path, "sft") == {"wall_seconds": 8.0, "cpu_seconds": 12.0}  # of a bare `dvc repro`
    remember(tmp_path, "sft", 9.0, "run-2")  # a stage of another shape, which wrote no record
    assert past_cost(tmp_path, "sft")["cpu_seconds"] == 12.0
    for cpu in (20.0, 30.0, 100.0):
        (tmp_path / "runs/sft.json").write_text(json.dumps({**record, "cpu_seconds": cpu}))
        remember(tmp_path, "sft", 10.0, "run-1")
    assert past_cost(tmp_path, "sft")["cpu_seconds"] == 30.0
    assert past_seconds(tmp_path, "sft") == 10.0
    assert past_cost(tmp_path, "ppo") == {}


def test_plan_text_names_certain_causes_and_sums_up_missing_outputs():
    upstream = Reason("upstream", "models/sft (sft)")
    missing = [Reason("output", path, None, "missing") for path in ("models/ppo", "runs/ppo.json")]
    plan = Plan(
        (
            StagePlan("ppo", Action.RUN, (), (Reason("parameter", "ppo.steps", 20, 16), upstream)),
            StagePlan("dpo", Action.RUN, (), (*missing, upstream)),
            StagePlan("sft", Action.STAYS, (), (Reason("expected", "models/base"),)),
        )
    )
    lines = [" ".join(line.split()) for line in plan_lines(plan)]
    assert lines == [
        "ppo runs ppo.steps: 20 -> 16",
        "dpo runs models/ppo and 1 more outputs are missing",
        "sft stays models/base will stay as it is",
        "2 runs, 1 stays",
    ]
