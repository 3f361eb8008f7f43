"""The two pipelines of a soak: a light one without torch, and the real dvc.yaml at tiny sizes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import yaml

from benchmarks.workspaces import ROOT, environment
from prefloop.config.read import read_yaml
from tests.pipeline.conftest import TINY

HERE = Path(__file__).parent
STEPS = 40


@dataclass(frozen=True)
class Pipeline:
    """What runs in a workspace.

    Attributes:
        name: "light" or "real".
        prepare: turns a clone of the project into its workspace.
        first: parameters of the first run.
        change: parameters that make part of it run again, for the n-th time.
        variants: how many results the changes lead to; the n-th change has those of n modulo this.
        trainers: stages in whose training faults strike, with the steps that it takes.
        restores: DVC would restore what a change leads to, unless its run-cache is emptied.
        variables: further environment of its runs.
        pool: work pool whose workers run the stages; empty runs all in the workspace.
        kinds: names of the faults that strike; empty takes all that can be had.
    """

    name: str
    prepare: Callable[[Path], None]
    first: Mapping[str, Any]
    change: Callable[[int, Random], Mapping[str, Any]]
    variants: int
    trainers: Mapping[str, int]
    restores: bool
    variables: Mapping[str, str] = field(default_factory=dict)
    pool: str = ""
    kinds: frozenset[str] = frozenset()


def _stage(
    name: str, deps: list[str], params: list[str], outs: list[str], metrics: list[str]
) -> dict[str, Any]:
    return {
        "cmd": f"python -m tasks.light {name}",
        "deps": deps,
        "params": ["seed", *params, {"runs/environment.json": None}, {"runs/code.json": [name]}],
        "outs": [*outs, f"runs/{name}.json"],
        "metrics": metrics,
    }


def light_dag() -> dict[str, Any]:
    """The content of the light pipeline's dvc.yaml."""
    kinds = ("demonstrations", "preferences")
    good = {kind: f"data/validated/{kind}.jsonl" for kind in kinds}
    stages: dict[str, Any] = {"environment": read_yaml(ROOT / "dvc.yaml")["stages"]["environment"]}
    raw = [f"data/raw/{kind}.jsonl" for kind in kinds]
    kept = [f"data/{folder}/{kind}.jsonl" for folder in ("validated", "quarantine") for kind in kinds]
    stages["ingest"] = _stage("ingest", ["data/sources"], ["ingest"], raw, ["metrics/ingest.json"])
    stages["sort"] = _stage("sort", raw, ["validate"], kept, ["metrics/sort.json"])
    for name in ("sft", "ppo", "dpo"):
        reads = [good["demonstrations"]] if name == "sft" else ["models/sft", good["preferences"]]
        outs = [f"models/{name}", f"plots/{name}.csv"]
        stages[name] = _stage(name, reads, [name], outs, [f"metrics/{name}.json"])
    models = [f"metrics/{name}.json" for name in ("sft", "ppo", "dpo")]
    stages["report"] = _stage(
        "report", models, ["report"], ["reports/report.html"], ["metrics/evaluate.json"]
    )
    return {"stages": stages}


def _prepare_light(root: Path) -> None:
    shutil.copy2(HERE / "light.py", root / "tasks/light.py")
    (root / "tasks/promote.py").unlink()  # nothing here is worth a promotion
    (root / "dvc.yaml").write_text(yaml.safe_dump(light_dag(), sort_keys=False), encoding="utf-8")
    _commit(root)


def _prepare_real(root: Path) -> None:
    _commit(root)


def _commit(root: Path) -> None:
    words = ["-c", "user.name=soak", "-c", "user.email=soak@localhost", "commit", "-q", "-a", "-m", "a soak"]
    for command in (["add", "-A"], [*words, "--allow-empty"]):
        subprocess.run(["git", *command], cwd=root, check=True, env=environment(root))


def _change_light(number: int, draw: Random) -> dict[str, Any]:
    """Parameters that count in a stage's key and, with these stages, not in its results."""
    changed: dict[str, Any] = {f"{name}.max_length": 100 + number for name in ("sft", "ppo", "dpo")}
    if draw.random() < 0.3:
        changed |= {"ingest.evaluation": 500 + number, "validate.examples": 10 + number}
        changed["report.samples"] = 12 + number
    return changed


def _change_real(number: int, _draw: Random) -> dict[str, Any]:
    other = number % 2
    return {"dpo.beta": 0.3 if other else 0.4, "ppo.kl_coef": 0.3 if other else 0.1}


CPU = {"compute.device": "cpu", "compute.checkpoint_seconds": 0.0, "tracking.flush_seconds": 2.0}

LIGHT = Pipeline(
    "light",
    _prepare_light,
    {**CPU, **{f"{name}.steps": STEPS for name in ("sft", "ppo", "dpo")}},
    _change_light,
    1,
    dict.fromkeys(("sft", "ppo", "dpo"), STEPS),
    False,
    {"PREFLOOP_WARM": "off"},
)
DISTRIBUTED = replace(
    LIGHT,
    name="pool",
    pool="soak",
    kinds=frozenset(
        {
            "worker killed",
            "job delivered twice",
            "trainer killed",
            "coordinator killed",
            "Prefect server killed",
            "database killed",
            "network to storage cut",
            "network to storage stalled",
        }
    ),
)
REAL = Pipeline(
    "real",
    _prepare_real,
    {**TINY, **CPU, **_change_real(0, Random()), "dpo.steps": STEPS, "ppo.steps": 6},
    _change_real,
    2,
    {"dpo": STEPS, "ppo": 6},
    True,
)
