"""Runs in MLflow, as the pipeline writes them: python -m benchmarks.dashboard.fill RUNS, in a workspace.

Every tenth is a pipeline run with its parameters, the others are stages under it: curves, figures,
costs, data sets, checkpoints, models in the registry. They go the way that a stage's events go, through the
spool.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from prefloop.config.read import read_yaml
from prefloop.files import write_json
from tasks.deliver import deliver_once
from tasks.support.costs import COSTS
from tasks.support.flatten import flatten
from tasks.support.pipeline import Pipeline
from tasks.support.tracking import RunTracker, registered_name
from tasks.support.workspace import slug

POLICIES = ("sft", "ppo", "dpo")
KINDS = (
    "demonstrations", "preferences", "prompts", "text", "judge", "unpaired", "evaluation", "held_out",
)  # fmt: skip
FOLDERS = ("raw", "validated", "quarantine")
AT_ONCE = 10
"""Pipelines between two deliveries."""
ENVIRONMENT = {
    "device": "cpu", "device_name": "a processor", "threads": 2, "precision": "fp32", "torch": "2.13.0",
    "transformers": "5.17.0", "instruction_set": "AVX512", "processes": 1,
}  # fmt: skip
SAMPLED = ("score", "score_std", "kl", "length", "ended", "clip_fraction", "entropy", "value_loss", "lr")


@dataclass(frozen=True)
class Sort:
    """What a stage of a kind writes.

    Attributes:
        steps, names: of its curve.
        checkpoints: of its training.
        model: it makes models/NAME.
    """

    section: str
    steps: int = 0
    names: tuple[str, ...] = ()
    checkpoints: int = 0
    model: bool = False


STAGES = {
    "ingest": Sort("ingest"),
    "sft": Sort("sft", 60, ("loss", "grad_norm", "learning_rate", "tokens", "seconds"), 2, True),
    "reward": Sort("reward", 60, ("loss", "accuracy", "margin", "grad_norm", "learning_rate"), 2, True),
    "ppo@ppo": Sort("ppo", 16, (*SAMPLED, *(f"reward/{name}" for name in SAMPLED)), 2, True),
    "dpo@dpo": Sort("dpo", 60, ("loss", "accuracy", "margin", "grad_norm", "chosen", "rejected"), 2, True),
    **{f"evaluate@{policy}": Sort("evaluate") for policy in POLICIES},
    "report": Sort("report"),
}


def fill(count: int) -> dict[str, Any]:
    """Writes at least as many runs; says how long it took, and the ids of the first and the last pipeline."""
    started = time.monotonic()
    pipelines = []
    for number in range(-(-count // (len(STAGES) + 1))):
        pipelines.append(pipeline_run(number))
        if number % AT_ONCE == AT_ONCE - 1:
            deliver_once()
    deliver_once()
    return {
        "runs": len(pipelines) * (len(STAGES) + 1),
        "seconds": time.monotonic() - started,
        "first": pipelines[0],
        "last": pipelines[-1],
    }


def pipeline_run(number: int) -> str:
    """One pipeline run with its stages, all in the spool; returns its id. Figures follow from the number."""
    pipeline = Pipeline()
    write_json(Path("runs/environment.json"), ENVIRONMENT)
    files = {f"data/{folder}/{kind}.jsonl": kind for folder in FOLDERS for kind in KINDS}
    lock = {path: digest(f"{kind} {number // 10}") for path, kind in files.items()}
    outs = [{"path": path, "md5": md5} for path, md5 in lock.items()]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"ingest": {"outs": outs}}}), encoding="utf-8")
    policies = {policy: evaluation(number, place) for place, policy in enumerate(POLICIES)}
    write_json(Path("metrics/evaluate.json"), {"policies": policies})
    pipeline.begin()
    for stage, sort in STAGES.items():
        stage_run(pipeline.run, stage, sort, number)
    pipeline.finish()
    return pipeline.run


def stage_run(parent: str, name: str, sort: Sort, number: int) -> None:
    """What `Stage` tells of one."""
    tracker, key = RunTracker(name), digest(f"{name} {number}") * 2
    section = dict(read_yaml("params.yaml")[sort.section])
    tags = {"prefloop.stage": name, "prefloop.key": key, "git_commit": "0" * 40, "git_dirty": False}
    tracker.start(
        parent=parent,
        params={"seed": 0, **flatten(section, sort.section)},
        tags={**tags, **flatten(ENVIRONMENT, "environment")},
    )
    for kind in KINDS[:2]:
        tracker.dataset(kind, Path(f"data/validated/{kind}.jsonl"), digest(f"{kind} {number // 10}"), 1000)
    for step in range(1, sort.steps + 1):
        tracker.metrics(step, dict.fromkeys(sort.names, (number + 1) / (step + 1)))
        if sort.checkpoints and step % (sort.steps // sort.checkpoints) == 0:
            tracker.checkpoint(step, Path("scratch"), {"loss": 1 / step})
    policy = name.removeprefix("evaluate@")
    figures = (
        evaluation(number, POLICIES.index(policy)) if policy in POLICIES else {"rows": 1000, "loss": 1.0}
    )
    tracker.metrics(0, figures, "final")
    if sort.model:
        folder = Path("models") / slug(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "weights").write_text(key, encoding="ascii")
        tracker.model(folder, key, registered_name(folder.name), {"loss": 1.0})
    cost = dict.fromkeys(COSTS[:3], 12.5)
    tracker.metrics(0, cost, "cost")
    tracker.end("FINISHED")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"stage": name, "key": key, "run": tracker.run, "pipeline": parent, "start": now, "end": now}
    write_json(Path("runs") / f"{slug(name)}.json", {**record, **cost})


def evaluation(number: int, place: int) -> Mapping[str, Any]:
    """A policy's figures, with intervals."""
    gold = place + (number % 17) / 17
    return {
        "gold": {"mean": gold, "ci95": [gold - 0.1, gold + 0.1]},
        "reward": {"mean": gold / 2, "ci95": [0.0, 1.0]},
        "win_rate_vs_sft": {"mean": 0.5, "ci95": [0.45, 0.55]},
        "kl_to_sft": 1.5,
        "length": 20.0,
        "ended": 1.0,
        "distinct_2": 0.05,
    }


def digest(text: str) -> str:
    """32 hex digits, as DVC has them."""
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    print(json.dumps(fill(int(sys.argv[1]))))
