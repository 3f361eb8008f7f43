"""A pipeline run as tracking sees it: the parent of its stages' runs, and a record of what it was made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefloop.config.read import read_yaml
from prefloop.errors import DataError
from prefloop.files import read_json, write_json
from tasks.support.costs import cost_of, total
from tasks.support.delivery_process import DELIVERED, DeliveryProcess
from tasks.support.flatten import flatten
from tasks.support.keys import locked_hashes
from tasks.support.redact import redact_all
from tasks.support.runs import git_state
from tasks.support.tracking import RunTracker, pipeline_id
from tasks.support.workspace import PIPELINE_ID, slug, state_folder

EVALUATION = Path("metrics/evaluate.json")
MAIN_FIGURES = (
    "gold.mean",
    "reward.mean",
    "win_rate_vs_sft.mean",
    "kl_to_sft",
    "length",
    "ended",
    "distinct_2",
    "gap_closed",
)
"""Figures of each policy that a pipeline run shows; all of them are in metrics/evaluate.json."""

SCORES = ("gold", "win_rate_vs_sft")
SORTED = ("data/validated/", "data/quarantine/")
"""Data that follow from what lies in data/raw and the parameters of their stage."""
RECORD = "pipeline.json"
"""The artifact of a pipeline run that holds its whole record."""
PLACEMENT = "resources"
"""The section that says where stages run; no stage reads it."""


class Pipeline:
    """One pipeline run. Open it with `tracked_pipeline`.

    Attributes:
        run: its id.
        variables: environment variables that its stages' processes need.
        status: how it ends, as things stand: FINISHED, FAILED or KILLED.
    """

    def __init__(self, run: str = "", writer: int = 0) -> None:
        self._tracker = RunTracker("pipeline", run, writer)
        self.run = self._tracker.run
        self.variables = {PIPELINE_ID: self.run}
        self.status = "FINISHED"
        self._started = datetime.now(UTC)
        self._git = git_state()

    def begin(self) -> None:
        """Opens the run with the parameters in use, unless an earlier stage of a bare `dvc repro` did."""
        if not self._tracker.known:
            self._tracker.start(params=_parameters(), tags=self._git)

    def link_skipped(self, stages: Iterable[str]) -> None:
        """Points to the runs that made the outputs of stages that did not run, by skip or by restore."""
        for stage in stages:
            made = _run_record(stage)
            if made is not None and made.get("pipeline") != self.run:
                self._tracker.link(stage, str(made["run"]))

    def finish(self, *, final: bool = True) -> None:
        """Adds data hashes, environment, cost and the evaluation's main figures, keeps a record, closes it.

        Args:
            final: False after a stage of a bare `dvc repro` that others may follow: MLflow never changes a
                parameter, so hashes and figures that may still change only go into the record.
        """
        described = {**describe(), "cost": self._cost()}
        record = self._record(described)
        if final:
            self._track(described)
            self._tracker.document(RECORD, record)
        write_json(records_folder() / f"{self.run}.json", record)
        self._tracker.end(self.status)

    def _track(self, described: Mapping[str, Any]) -> None:
        self._tracker.params(
            {f"data.{path}": md5 for path, md5 in described["data"].items() if not path.startswith(SORTED)}
        )
        self._tracker.params(flatten(described["environment"], "environment"))
        self._tracker.metrics(0, described["cost"], "cost")
        for policy, figures in described["figures"].items():
            made = _run_record(policy)
            values = {f"eval/{policy}/{name}": value for name, value in figures.items()}
            self._tracker.model_metrics(str(made["key"]) if made else "", values)

    def _cost(self) -> dict[str, float]:
        """What the stages that ran in this run cost together."""
        records = map(_readable, sorted(Path("runs").glob("*.json")))
        return total(cost_of(record) for record in records if record and record["pipeline"] == self.run)

    def _record(self, described: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "run": self.run,
            "status": self.status,
            "start": self._started.isoformat(timespec="seconds"),
            "end": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._git,
            **described,
        }


@contextmanager
def tracked_pipeline(run: str = "") -> Iterator[Pipeline]:
    """Opens a pipeline run and delivers its events, its stages' included, while the block runs.

    Give `Pipeline.variables` to the stages' processes. The run is closed as FAILED or KILLED when the block
    raises, and with `Pipeline.status` otherwise.

    Args:
        run: id of the run; a new one by default.
    """
    pipeline = Pipeline(run)
    delivery = DeliveryProcess()
    if os.environ.get("PREFLOOP_TRACKING") != "off":
        delivery.start()
        if delivery.pid:
            pipeline.variables[DELIVERED] = str(delivery.pid)
    pipeline.begin()
    try:
        yield pipeline
    except BaseException as error:
        pipeline.status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        pipeline.finish()
        delivery.finish()


def bare_pipeline() -> Pipeline | None:
    """The parent run of a stage that a bare `dvc repro` started; None under a flow, or by hand."""
    run = pipeline_id()
    if not run.startswith("dvc-"):
        return None
    return Pipeline(run, writer=int(run.rsplit("-", 1)[1]))


def describe() -> dict[str, Any]:
    """What a pipeline run is made of and what came out: parameters, data hashes, environment, figures,
    stages."""
    environment = Path("runs/environment.json")
    evaluation = read_json(EVALUATION) if EVALUATION.exists() else {}
    return {
        "params": _parameters(),
        "data": {
            path: digest for path, digest in sorted(locked_hashes().items()) if path.startswith("data/")
        },
        "environment": dict(read_json(environment)) if environment.exists() else {},
        "figures": main_figures(evaluation),
        "intervals": main_intervals(evaluation),
        "stages": {
            str(record["stage"]): {"run": record["run"], "key": record["key"], "pipeline": record["pipeline"]}
            for record in map(_readable, sorted(Path("runs").glob("*.json")))
            if record is not None
        },
    }


def main_figures(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Policy -> main figures, of what metrics/evaluate.json holds."""
    found: dict[str, dict[str, float]] = {}
    for policy, figures in evaluation.get("policies", {}).items():
        flat = flatten(figures)
        found[policy] = {
            name: flat[name] for name in MAIN_FIGURES if isinstance(flat.get(name), (int, float))
        }
    return found


def main_intervals(evaluation: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Policy -> figure -> [low, high], for the scores that policies are ranked by."""
    return {
        policy: {name: figures[name]["ci95"] for name in SCORES if (figures.get(name) or {}).get("ci95")}
        for policy, figures in evaluation.get("policies", {}).items()
    }


def records_folder() -> Path:
    """Where the records of pipeline runs lie, one JSON file a run."""
    return state_folder() / "pipelines"


def _parameters() -> dict[str, str]:
    """Those that a stage of this pipeline reads."""
    params = read_yaml("params.yaml")
    policies = params.get("policies") or {}
    idle = {method for method, variants in policies.items() if not variants} | {PLACEMENT}
    return redact_all(flatten({name: value for name, value in params.items() if name not in idle}))


def _run_record(stage: str) -> dict[str, Any] | None:
    return _readable(Path("runs") / f"{slug(stage)}.json")


def _readable(path: Path) -> dict[str, Any] | None:
    """A stage's record; None where there is none, or it is no stage's (runs/environment.json)."""
    try:
        record = read_json(path)
    except DataError:
        return None
    return (
        record if isinstance(record, dict) and {"stage", "run", "key", "pipeline"} <= record.keys() else None
    )
