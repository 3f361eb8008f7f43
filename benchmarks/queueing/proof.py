"""That each run was done once, well, in one place, and no stage twice.

From four records that know nothing of each other: Prefect's history of states, the workspaces' witnesses,
their histories, and MLflow's runs. Each function returns what is wrong, in words; nothing where all is well.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from benchmarks.queueing.orders import Order
from benchmarks.queueing.queue import ENDED, Values, first, moment

Witness = dict[str, list[Values]]
"""Workspace -> lines of its witness, in order."""


def lines_of(workspaces: Sequence[Path], name: str) -> Witness:
    """The JSON lines of a file in .prefloop/, by workspace."""
    found: Witness = {}
    for workspace in workspaces:
        path = workspace / ".prefloop" / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        found[workspace.name] = [json.loads(line) for line in text.splitlines()]
    return found


def ended_once(ordered: Mapping[str, Order], runs: Sequence[Values]) -> list[str]:
    """What is wrong with the flow runs themselves.

    Args:
        ordered: flow run's id -> order, of all that were queued.
        runs: flow runs with their `states`, as the server has them.
    """
    known = Counter(str(run["id"]) for run in runs)
    wrong = [
        f"{order.name} is lost: the server has no such run" for id, order in ordered.items() if not known[id]
    ]
    for run in runs:
        name, ends = run["name"], [state for state in run["states"] if state["type"] in ENDED]
        if str(run["id"]) not in ordered:
            wrong.append(f"{name} was never queued")
        if run["state"]["type"] != "COMPLETED":
            wrong.append(f"{name} ended as {run['state']['name']}: {run['state'].get('message')}")
        for kind in ("Pending", "Running"):  # by name: `Submitting` is of the type PENDING, too
            times = sum(state["name"] == kind for state in run["states"])
            if times != 1:
                wrong.append(f"{name} was {times} times {kind}")
        if len(ends) != 1:
            wrong.append(f"{name} ended {len(ends)} times")
    return wrong


def in_one_place(ordered: Mapping[str, Order], runs: Sequence[Values], witness: Witness) -> list[str]:
    """What is wrong with where runs were, and whether two were in one workspace at once."""
    came: dict[str, list[str]] = defaultdict(list)
    wrong = []
    for workspace, lines in witness.items():
        for line in lines:
            if line["stage"] != "environment":
                continue
            if len(line["flow_runs"]) != 1:
                wrong.append(f"{workspace}: a run began for {len(line['flow_runs'])} flow runs")
            for id in line["flow_runs"]:
                came[id].append(workspace)
    for id, order in ordered.items():
        if len(came[id]) != 1:
            wrong.append(f"{order.name} began {len(came[id])} times: {', '.join(came[id]) or 'nowhere'}")
    wrong += [
        f"flow run {id} began in {came[id][0]}, but was never queued" for id in came if id not in ordered
    ]
    spans: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for run in runs:
        worker = (run.get("labels") or {}).get("prefect.worker.name")
        places = set(came[str(run["id"])])
        if places and places != {worker}:
            wrong.append(f"{run['name']} was given to {worker} and began in {', '.join(sorted(places))}")
        begun, ended = first(run, "RUNNING"), first(run, "COMPLETED")
        if begun and ended:
            spans[str(worker)].append((moment(begun), moment(ended), run["name"]))
    for worker, times in spans.items():
        for (_, end, one), (begin, _, other) in pairwise(sorted(times)):
            if begin < end:
                wrong.append(f"{worker}: {other} began before {one} had ended")
    return wrong


def stages_once(ordered: Mapping[str, Order], witness: Witness, histories: Witness) -> list[str]:
    """What is wrong with the stages: run twice for one key, not run for an order, or not recorded."""
    wrong = []
    did: dict[str, Counter[str]] = defaultdict(Counter)
    for workspace, lines in witness.items():
        ran = [line for line in lines if line["stage"] != "environment"]
        for (stage, key), times in Counter((line["stage"], line["key"]) for line in ran).items():
            if times > 1:
                wrong.append(f"{workspace}: {stage} ran {times} times for the key {key[:12]}")
        for line in ran:
            for id in line["flow_runs"] or ["nobody"]:
                did[id][line["stage"]] += 1
        noted = Counter(line["stage"] for line in histories.get(workspace, []))
        seen = Counter(line["stage"] for line in ran)
        if noted != seen:
            wrong.append(f"{workspace}: stages ran {dict(seen)}, its history has {dict(noted)}")
    if did["nobody"]:
        wrong.append(f"stages ran for nobody: {dict(did['nobody'])}")
    for id, order in ordered.items():
        missing = [stage for stage in order.stages if did[id][stage] != 1]
        if missing:
            wrong.append(f"{order.name} has parameters of its own, but ran {dict(did[id])}: {missing}")
    return wrong


def parameters_once(ordered: Mapping[str, Order], witness: Witness) -> list[str]:
    """Whether a key that only one order can have was run in one workspace alone, over all of them."""
    wrong = []
    places: dict[tuple[str, str], set[str]] = defaultdict(set)
    for workspace, lines in witness.items():
        for line in lines:
            own = [ordered[id].stages for id in line["flow_runs"] if id in ordered]
            if own and line["stage"] in own[0]:
                places[line["stage"], line["key"]].add(workspace)
    for (stage, key), found in places.items():
        if len(found) > 1:
            wrong.append(f"{stage} ran for the key {key[:12]} in {', '.join(sorted(found))}")
    return wrong


def tracked_once(witness: Witness, tracked: Iterable[tuple[str, str, str]]) -> list[str]:
    """What is wrong with MLflow's runs of stages.

    Args:
        tracked: (stage, key, status) of each.
    """
    ran = Counter(
        (line["stage"], line["key"])
        for lines in witness.values()
        for line in lines
        if line["stage"] != "environment"
    )
    found: Counter[tuple[str, str]] = Counter()
    wrong = []
    for stage, key, status in tracked:
        found[stage, key] += 1
        if status != "FINISHED":
            wrong.append(f"MLflow has a run of {stage} as {status}")
    for stage, key in ran.keys() | found.keys():
        if ran[stage, key] != found[stage, key]:
            times = f"ran {ran[stage, key]} times, MLflow has {found[stage, key]}"
            wrong.append(f"{stage} of the key {key[:12]} {times}")
    return sorted(wrong)
