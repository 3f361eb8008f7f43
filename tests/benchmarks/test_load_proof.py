"""The load benchmark's proof: each fault that it is there for is found, and a queue without one passes."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest

from benchmarks.load import MEASURED, write_page
from benchmarks.queueing.figures import figures
from benchmarks.queueing.orders import PPO_STAGES, Order, in_words, orders
from benchmarks.queueing.proof import (
    ended_once,
    in_one_place,
    lines_of,
    parameters_once,
    stages_once,
    tracked_once,
)

ORDERS = {"a": Order(0, {}, ()), "b": Order(1, {"ppo.kl_coef": 0.3}, PPO_STAGES), "c": Order(2, {}, ())}
PLACES = {"a": "workspace-1", "b": "workspace-2", "c": "workspace-1"}
TIMES = {"a": (10, 20, 24, 30), "b": (10, 21, 26, 50), "c": (11, 31, 34, 40)}
KEYS = {"ppo": "key of ppo", "report": "key of report"}


def state(kind: str, second: int, name: str = "") -> dict:
    at = f"2026-11-22T06:00:{second:02}+00:00"
    return {"type": kind, "name": name or kind.title(), "timestamp": at, "message": None}


def runs() -> list[dict]:
    """Three flow runs in two workspaces, all of them well."""
    found = []
    for id, order in ORDERS.items():
        queued, taken, begun, ended = TIMES[id]
        states = [
            state("SCHEDULED", queued), state("SCHEDULED", queued + 1, "Late"), state("PENDING", taken),
            state("PENDING", taken + 1, "Submitting"), state("RUNNING", begun),
            state("COMPLETED", ended, "Completed" if order.stages else "Skipped"),
        ]  # fmt: skip
        labels = {"prefect.worker.name": PLACES[id]}
        found.append({"id": id, "name": order.name, "states": states, "state": states[-1], "labels": labels})
    return found


def witness() -> dict[str, list[dict]]:
    lines: dict[str, list[dict]] = {"workspace-1": [], "workspace-2": []}
    for id, order in ORDERS.items():
        for stage in ("environment", *order.stages):
            lines[PLACES[id]].append({"stage": stage, "key": KEYS.get(stage, ""), "flow_runs": [id]})
    return lines


def histories() -> dict[str, list[dict]]:
    return {"workspace-1": [], "workspace-2": [{"stage": stage} for stage in PPO_STAGES]}


TRACKED = [(stage, key, "FINISHED") for stage, key in KEYS.items()]


def everything(found=None, seen=None, noted=None, tracked=None) -> list[str]:
    found, seen = found or runs(), seen or witness()
    return [
        *ended_once(ORDERS, found),
        *in_one_place(ORDERS, found, seen),
        *stages_once(ORDERS, seen, noted or histories()),
        *parameters_once(ORDERS, seen),
        *tracked_once(seen, TRACKED if tracked is None else tracked),
    ]


def test_a_queue_without_a_fault_passes():
    assert everything() == []


def test_a_lost_run_and_one_that_nobody_queued_are_found():
    assert "order-2 is lost: the server has no such run" in ended_once(ORDERS, runs()[:2])
    stranger = deepcopy(runs()[0]) | {"id": "x", "name": "stranger"}
    assert ended_once(ORDERS, [*runs(), stranger]) == ["stranger was never queued"]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([("RUNNING", "")], "order-0 was 2 times Running"),
        ([("PENDING", "")], "order-0 was 2 times Pending"),
        ([("COMPLETED", "")], "order-0 ended 2 times"),
        ([("CRASHED", "")], "order-0 ended 2 times"),
    ],
)
def test_a_run_that_was_delivered_or_ended_twice_is_found(extra, expected):
    found = runs()
    found[0]["states"] += [state(kind, 35, name) for kind, name in extra]
    assert expected in ended_once(ORDERS, found)


def test_a_run_that_failed_is_told_with_its_message():
    found = runs()
    found[1]["states"][-1] = found[1]["state"] = state("FAILED", 50) | {"message": "exit code 6"}
    assert ended_once(ORDERS, found) == ["order-1 ended as Failed: exit code 6"]


def test_a_run_that_began_in_two_workspaces_or_in_none_is_found():
    twice = witness()
    twice["workspace-2"].append({"stage": "environment", "key": "", "flow_runs": ["a"]})
    assert in_one_place(ORDERS, runs(), twice) == [
        "order-0 began 2 times: workspace-1, workspace-2",
        "order-0 was given to workspace-1 and began in workspace-1, workspace-2",
    ]
    nowhere = witness()
    del nowhere["workspace-1"][0]
    assert in_one_place(ORDERS, runs(), nowhere) == ["order-0 began 0 times: nowhere"]


def test_two_runs_at_once_in_one_workspace_are_found():
    found = runs()
    found[2]["states"][4] = state("RUNNING", 29)
    assert in_one_place(ORDERS, found, witness()) == ["workspace-1: order-2 began before order-0 had ended"]


def test_a_stage_that_ran_twice_for_one_key_or_not_at_all_is_found():
    twice = witness()
    twice["workspace-2"].append({"stage": "ppo", "key": KEYS["ppo"], "flow_runs": ["b"]})
    wrong = stages_once(ORDERS, twice, histories())
    assert wrong[0] == "workspace-2: ppo ran 2 times for the key key of ppo"
    assert any("its history has {'ppo': 1, 'report': 1}" in line for line in wrong)
    missing = witness()
    missing["workspace-2"].pop()
    assert any("['report']" in line for line in stages_once(ORDERS, missing, histories()))


def test_parameters_that_reached_two_workspaces_are_found():
    both = witness()
    both["workspace-1"].append({"stage": "ppo", "key": KEYS["ppo"], "flow_runs": ["b"]})
    assert parameters_once(ORDERS, both) == ["ppo ran for the key key of ppo in workspace-1, workspace-2"]


def test_runs_that_mlflow_lost_doubled_or_left_open_are_found():
    assert tracked_once(witness(), TRACKED[:1]) == [
        "report of the key key of repor ran 1 times, MLflow has 0"
    ]
    assert tracked_once(witness(), [*TRACKED, TRACKED[0]]) == [
        "ppo of the key key of ppo ran 1 times, MLflow has 2"
    ]
    killed = [("ppo", KEYS["ppo"], "KILLED"), TRACKED[1]]
    assert tracked_once(witness(), killed) == ["MLflow has a run of ppo as KILLED"]


def test_figures_follow_from_the_times_of_states():
    found = figures(runs(), 2, alone=(2.0, 1.5), cpu=30.0, server_mib=300.0)
    # Queued at 10, 10, 11; taken at 20, 21, 31; begun at 24, 26, 34; ended at 30, 50, 40.
    assert (found.seconds, found.waited, found.waited_longest, found.started) == (40, 11, 20, 4)
    assert (found.ran, found.ran_unchanged, found.ran_changed) == (6, 6, 24)
    assert (found.a_minute, found.cpu, found.added_cpu) == (4.5, 10.0, 8.5)


def test_no_two_orders_share_a_parameter():
    queue = orders(200)
    own = [tuple(order.changes.items()) for order in queue if order.changes]
    assert len(own) == len(set(own)) == 15
    assert in_words(queue).startswith("200 runs: 185 as the workspace stands, 10 with a `ppo.kl_coef`")


def test_lines_of_workspaces_are_read_and_what_is_not_there_is_empty(tmp_path):
    (tmp_path / "one/.prefloop").mkdir(parents=True)
    (tmp_path / "one/.prefloop/witness.jsonl").write_text(json.dumps({"stage": "ppo"}) + "\n")
    found = lines_of([tmp_path / "one", tmp_path / "two"], "witness.jsonl")
    assert found == {"one": [{"stage": "ppo"}], "two": []}


def test_what_was_measured_takes_the_place_of_the_pages_last_section(tmp_path: Path):
    page = tmp_path / "load.md"
    page.write_text(f"# load\n\nWords.\n\n{MEASURED}\nold figures\n")
    write_page(page, "new figures")
    assert page.read_text() == f"# load\n\nWords.\n\n{MEASURED}\nnew figures\n"
    page.write_text("# load\n")
    with pytest.raises(ValueError, match="has no section '## As measured'"):
        write_page(page, "new figures")
