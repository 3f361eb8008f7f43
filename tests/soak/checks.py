"""What has to hold after a fault: results, rows, metrics, checkpoints, models, processes, what is kept."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.leftovers import unfinished
from prefloop.config.read import LOADER, read_yaml
from prefloop.files import sha256_file
from tasks.support.locks import holder
from tests.soak.world import World

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FIXED = ("models/", "data/", "metrics/", "plots/")
"""Outputs that follow from inputs alone; runs/ and the page in reports/ tell of the run."""
STAGE_TAG, KEY_TAG = "prefloop.stage", "prefloop.key"


@dataclass(frozen=True)
class Expected:
    """What an undisturbed run left.

    Attributes:
        hashes: path of an output -> DVC's hash of it.
        rows: path of a data file -> how many rows are in it.
        curves: training -> metric -> values of its steps, the first one's first.
        seconds: how long the change took to run.
    """

    hashes: Mapping[str, str]
    rows: Mapping[str, int]
    curves: Mapping[str, Mapping[str, list[float]]]
    seconds: float


def expected(world: World, seconds: float) -> Expected:
    """What the workspace holds now."""
    curves = {stage: curve(world.root / f"plots/{stage}.csv") for stage in world.pipeline.trainers}
    return Expected(hashes(world.root), rows(world.root), curves, seconds)


def hashes(root: Path) -> dict[str, str]:
    """Path -> hash of every output whose content is fixed, as dvc.lock has them."""
    locked = yaml.load((root / "dvc.lock").read_text(encoding="utf-8"), LOADER)["stages"]
    outs = [out for stage in locked.values() for out in stage.get("outs", [])]
    return {out["path"]: out["md5"] for out in outs if out["path"].startswith(FIXED)}


def rows(root: Path) -> dict[str, int]:
    """Path -> rows of every data file that a stage wrote."""
    files = [
        path for kind in ("raw", "validated", "quarantine") for path in (root / "data" / kind).glob("*.jsonl")
    ]
    return {str(path.relative_to(root)): path.read_bytes().count(b"\n") for path in sorted(files)}


def curve(path: Path) -> dict[str, list[float]]:
    """Metric -> its values, of those that every step has."""
    with open(path, encoding="utf-8", newline="") as handle:
        lines = list(csv.DictReader(handle))
    whole = [name for name in lines[0] if name != "step" and all(line[name] for line in lines)]
    return {name: [float(line[name]) for line in lines] for name in whole}


class Tracking:
    """What MLflow has of a workspace's runs, read past the proxy.

    Args:
        world: whose.
    """

    def __init__(self, world: World) -> None:
        from mlflow import MlflowClient

        self._world = world
        self._experiment = str(read_yaml(world.root / "params.yaml")["tracking"]["experiment"])
        self.client: MlflowClient = MlflowClient(world.tracking_uri, world.tracking_uri)
        self._seen: set[str] = set()

    def new_runs(self) -> list[Run]:
        """Runs that were not there when this was asked last."""
        experiment = self.client.get_experiment_by_name(self._experiment)
        found: list[Run] = []
        token: str | None = None
        while experiment is not None:
            page = self.client.search_runs(
                [experiment.experiment_id], max_results=500, page_token=token, order_by=["start_time DESC"]
            )
            found += [run for run in page if run.info.run_id not in self._seen]
            token = page.token
            if not token or any(run.info.run_id in self._seen for run in page):
                break
        self._seen |= {run.info.run_id for run in found}
        return found

    def history(self, run: Run, metric: str) -> dict[int, set[float]]:
        """Step -> the values it has of one metric."""
        found: dict[int, set[float]] = {}
        for point in self.client.get_metric_history(run.info.run_id, metric):
            found.setdefault(point.step, set()).add(point.value)
        return found

    def artifacts(self, name: str, key: str) -> Path | None:
        """Folder of the registered version of a stage key; None where there is no version."""
        found = self.client.search_model_versions(f"name = '{name}' and tags.`{KEY_TAG}` = '{key}'")
        if not found:
            return None
        location = str(found[0].source)
        if location.startswith("file://"):
            return Path(location.removeprefix("file://"))
        assert self._world.servers is not None
        return self._world.servers.artifacts / location.partition(":/")[2].lstrip("/")


@dataclass(frozen=True)
class Struck:
    """What was known of a training when the fault struck.

    Attributes:
        stage: which one.
        step: steps that it had logged; -1 where none of its metrics are expected of the process struck.
        checkpoint: step of the newest one.
        cuts: it has to go on from there.
    """

    stage: str
    step: int = -1
    checkpoint: int = 0
    cuts: bool = False


def problems(world: World, want: Expected, tracking: Tracking, struck: Struck) -> list[str]:
    """Everything that does not hold; empty where all does."""
    return [
        *_processes(world),
        *_results(world, want),
        *_state(world),
        *_metrics(world, want, tracking, struck),
        *_models(world, tracking),
    ]


def _processes(world: World) -> Iterator[str]:
    for words in world.left_over():
        yield f"left running: {words[:120]}"


def _results(world: World, want: Expected) -> Iterator[str]:
    found = hashes(world.root)
    for path in sorted(found.keys() | want.hashes.keys()):
        if found.get(path) != want.hashes.get(path):
            yield f"{path} differs: {found.get(path)}, expected {want.hashes.get(path)}"
    counted = rows(world.root)
    if counted != want.rows:
        yield f"rows: {counted}, expected {dict(want.rows)}"


def _state(world: World) -> Iterator[str]:
    state = world.state
    if left := world.undelivered():
        yield f"events of {left} runs wait in the spool"
    refused = state / "spool/refused.log"
    if refused.exists():
        yield f"refused by MLflow: {refused.read_text(encoding='utf-8')[:300]}"
        refused.unlink()
    crashes = [path for home in world.homes for path in (home / ".prefloop/crashes").glob("*.txt")]
    for crash in sorted(crashes):
        yield f"an error of prefloop's own: {crash.read_text(encoding='utf-8').strip().splitlines()[-1]}"
        crash.unlink()
    yield from (f"record of a child left: {path.name}" for path in (state / "children").glob("*.json"))
    if stages := unfinished(world.root):
        yield f"marked as unfinished: {sorted(stages)}"
    for lock in sorted((state / "locks").glob("*.lock")):
        if holder(lock) is not None:
            yield f"lock {lock.name} is held"
    for stage in world.pipeline.trainers:
        for folder in (state / "scratch" / stage).glob("*/checkpoints"):
            yield f"a checkpoint of {stage} is left that nothing will go on from: {folder}"


def _metrics(world: World, want: Expected, tracking: Tracking, struck: Struck) -> Iterator[str]:
    runs = tracking.new_runs()
    yield from (
        f"run {run.info.run_name} is still {run.info.status}" for run in runs if run.info.status == "RUNNING"
    )
    for stage, curves in want.curves.items():
        attempts = [run for run in runs if slug_of(run) == stage]
        if not attempts:
            continue
        final = json.loads((world.root / f"runs/{stage}.json").read_text(encoding="utf-8"))
        ended = [run for run in attempts if run.data.tags.get("prefloop.run") == final["run"]]
        if not ended:
            yield f"MLflow has {len(attempts)} runs of {stage}, and not the one that ended well"
        for run in attempts:
            whole = run in ended
            for name, values in curves.items():
                yield from _points(run, name, tracking.history(run, _metric(name)), values, whole)
        reached = max(
            (len(tracking.history(run, _metric(next(iter(curves))))) for run in attempts), default=0
        )
        if stage == struck.stage and struck.step > 0 and reached < struck.step - 1:
            yield f"{stage} had logged {struck.step} steps, MLflow has {reached}"
        resumed = final["resumed_from_step"] or 0
        if stage == struck.stage and struck.cuts and len(attempts) > 1 and resumed < struck.checkpoint:
            yield f"{stage} went on after step {resumed}, with a checkpoint of {struck.checkpoint} there"


def _points(
    run: Run, name: str, found: Mapping[int, set[float]], want: list[float], whole: bool
) -> Iterator[str]:
    """What is wrong with one metric of one run: a gap, a second value, another value."""
    where = f"{run.info.run_name} ({run.info.status}), {name}"
    steps = sorted(found)
    if steps != list(range(1, len(steps) + 1)):
        yield f"{where}: steps {steps}"
    elif whole and len(steps) != len(want):
        yield f"{where}: {len(steps)} of {len(want)} steps"
    wrong = [step for step in steps if 1 <= step <= len(want) and found[step] != {want[step - 1]}]
    if wrong:
        yield f"{where}: other values at steps {wrong[:5]}"


def _models(world: World, tracking: Tracking) -> Iterator[str]:
    for stage in world.pipeline.trainers:
        key = json.loads((world.root / f"runs/{stage}.json").read_text(encoding="utf-8"))["key"]
        folder = next(home for home in world.homes if made_in(home, stage, key)) / "models" / stage
        kept = tracking.artifacts("prefloop-policy", key)
        if kept is None:
            yield f"the registry has no version of {stage}"
        elif digests(kept) != digests(folder):
            yield f"the registry's {stage} has other bytes: {_difference(digests(kept), digests(folder))}"


def made_in(home: Path, stage: str, key: str) -> bool:
    """Whether a folder has the model that a stage made under a key: weights stay where they were made."""
    record = home / f"runs/{stage}.json"
    made = (home / "models" / stage).is_dir() and record.exists()
    return made and bool(json.loads(record.read_text(encoding="utf-8"))["key"] == key)


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def digests(folder: Path) -> dict[str, str]:
    """Name -> hash of the files below a folder; MLflow's own description of a model left out."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in files_below(folder)
        if path.name != "MLmodel"
    }


def files_below(folder: Path) -> Iterable[Path]:
    """Files at any depth."""
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def slug_of(run: Run) -> str:
    """A run's stage as file names carry it."""
    from tasks.support.workspace import slug

    tags: Mapping[str, Any] = run.data.tags
    return slug(str(tags.get(STAGE_TAG, "")))


def _metric(name: str) -> str:
    return name if "/" in name else f"train/{name}"
