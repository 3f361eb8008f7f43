"""What the pipeline's benchmark makes of costs and records; a chain of idle stages, run by DVC."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from benchmarks.overhead.idle_pipeline import chain, make_chain, python
from benchmarks.overhead.records import parents_of, stage_costs, table
from benchmarks.overhead.turns import Cost, in_turn, spacing
from benchmarks.pipeline import Target, added, costs_table
from benchmarks.workspaces import environment

LOCK = {
    "sft": {"outs": [{"path": "models/sft"}]},
    "ppo": {"deps": [{"path": "models/sft"}], "outs": [{"path": "models/ppo"}, {"path": "looks/ppo.jsonl"}]},
    "dpo": {"deps": [{"path": "models/sft/weights"}], "outs": [{"path": "looks/dpo.jsonl"}]},
    "report": {"deps": [{"path": "looks"}], "outs": [{"path": "report.html"}]},
}


def test_what_is_added_to_a_stage_leaves_out_what_is_fixed_and_the_command():
    # 9 further stages take 18 s of CPU, 2 s each, of which half a second is the command's.
    found = added(Cost(20.0, 12.0), Cost(47.0, 30.0), 3.0, 10, Cost(1.25, 0.5))
    assert found == Cost(1.75, 1.5)


def test_the_spacing_of_a_chain_is_that_of_its_ends(tmp_path):
    (tmp_path / "runs").mkdir()
    for number, end in ((1, "10:00:20"), (2, "10:00:59"), (5, "10:01:30")):
        record = {"end": f"2026-11-21T{end}+00:00"}
        (tmp_path / f"runs/idle{number}.json").write_text(json.dumps(record))
    assert spacing(tmp_path, 5) == 70 / 4
    assert math.isnan(spacing(tmp_path, 1))


@pytest.mark.parametrize(("wall", "word"), [(1.5, "met "), (1.51, "MISSED")])
def test_a_target_is_met_by_its_wall_time(wall, word):
    target = Target("a stage", 1.5, wall, 0.4)
    assert str(target).startswith(word)
    assert target.met is (word == "met ")


def test_ways_take_turns_and_medians_are_of_each_figure():
    order = []
    costs = iter([Cost(1, 9), Cost(5, 5), Cost(3, 1), Cost(6, 6), Cost(2, 4), Cost(7, 7)])

    def way(name: str):
        def run() -> Cost:
            order.append(name)
            return next(costs)

        return run

    found = in_turn({"a": way("a"), "b": way("b")}, 3)
    assert order == ["a", "b"] * 3
    assert found == {"a": Cost(2, 4), "b": Cost(6, 6)}


def test_parents_are_found_through_folders_both_ways():
    assert parents_of(LOCK) == {"sft": set(), "ppo": {"sft"}, "dpo": {"sft"}, "report": {"ppo", "dpo"}}


def test_a_runs_records_become_a_table(tmp_path):
    (tmp_path / ".prefloop").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": LOCK}))
    ended = {"sft": ("10:00:20", 20.0), "ppo": ("10:01:00", 40.0), "dpo": ("10:00:55", 30.0)}
    lines = [
        {"stage": stage, "seconds": seconds, "ended": f"2026-11-21T{at}+00:00"}
        for stage, (at, seconds) in ended.items()
    ]
    (tmp_path / ".prefloop/history.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for stage, (_, seconds) in ended.items():
        record = {"wall_seconds": seconds - 3.0, "cpu_seconds": seconds / 2}
        (tmp_path / f"runs/{stage}.json").write_text(json.dumps(record))
    costs = stage_costs(tmp_path)
    assert [(c.stage, c.begun, c.total, c.waiting) for c in costs] == [
        ("sft", 0.0, 20.0, 0.0), ("ppo", 20.0, 40.0, 0.0), ("dpo", 25.0, 30.0, 5.0),
    ]  # fmt: skip
    assert [(c.work, c.cpu, c.around) for c in costs] == [
        (17.0, 10.0, 3.0),
        (37.0, 20.0, 3.0),
        (27.0, 15.0, 3.0),
    ]
    assert table(costs).splitlines()[-1] == "| all | | 90 | 81 | 45 | 9 | 5 |"


def test_costs_of_one_way_and_of_two_stand_in_one_table():
    two = {"prefloop": Cost(2.0, 1.0), "dvc": Cost(1.0, 0.5)}
    text = costs_table({"run": two, "command": Cost(0.5, 0.25), "stages": []})
    assert text.splitlines()[2:] == ["| run | 2.00 | 1.00 | 1.00 | 0.50 |", "| command | 0.50 | 0.25 | | |"]


def test_idle_stages_stand_in_a_chain():
    stages = chain(3)["stages"]
    assert list(stages) == ["environment", "idle1", "idle2", "idle3"]
    assert "deps" not in stages["idle1"]
    assert stages["idle3"]["deps"] == ["idle/idle2.txt"] == stages["idle2"]["outs"][:1]


def test_a_command_in_a_copy_sees_neither_an_outer_run_nor_another_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFLOOP_PIPELINE_ID", "outer")
    monkeypatch.setenv("DVC_STAGE", "sft")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    found = environment(tmp_path, PREFLOOP_TRACKING="off")
    assert {"PREFLOOP_PIPELINE_ID", "DVC_STAGE"}.isdisjoint(found)
    assert (found["PYTHONPATH"], found["PREFLOOP_TRACKING"]) == (str(tmp_path), "off")


@pytest.mark.slow
def test_dvc_runs_a_chain_of_idle_stages_as_real_ones(tmp_path):
    folder = tmp_path / "chain"
    make_chain(folder, 2)
    python(folder, "dvc", "repro", "-q")
    record = json.loads((folder / "runs/idle2.json").read_text())
    assert record["stage"] == "idle2"
    assert "tasks/idle.py" in record["code"]["files"]
    assert (folder / "idle/idle2.txt").read_text() == "idle2"
