"""From spool files to MLflow. Delivering an event twice leaves what delivering it once leaves, so a kill
between delivery and its record loses and doubles nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from prefloop.files import sha256_text
from tasks.support import model_delivery
from tasks.support.defaults import unusual
from tasks.support.mlflow_store import LINK, PARENT_TAG, RUN_TAG, Store
from tasks.support.process import ProcessId
from tasks.support.spool import Event, read_events, read_state, write_state
from tasks.support.workspace import slug

BATCH = 500
VALUE_CHARACTERS = 5000
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"}
_OF_THE_DATABASE = "BAD_REQUEST"
"""MLflow's word for whatever its database says but that it is away, a connection that was cut among it."""
_CONTENT = ("DataError", "IntegrityError")
"""What Python's database drivers call it (PEP 249) when it is the values that a database does not take."""


class Delivery:
    """Delivers every spool file of a folder to one store.

    Args:
        store: where to.
        folder: the spool folder.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._identity = sha256_text(f"{store.uri}\0{store.experiment}")[:16]

    def deliver(self) -> int:
        """Delivers what is there; returns how many events.

        Raises:
            Exception: whatever mlflow raises while its store cannot be reached; what was delivered stays
            recorded.
        """
        return sum(self._file(path) for path in sorted(self.folder.glob("*.jsonl")))

    def run_id(self, run: str) -> str | None:
        """The MLflow id of one of our runs; a run whose events still wait here gets its first ones delivered,
        and one of another machine is looked for in the store."""
        path = self.folder / f"{run}.jsonl"
        known = self._state(path).get("mlflow_run_id")
        if known is None and path.exists():
            self._file(path)
            known = self._state(path).get("mlflow_run_id")
        if known is None:
            found = self.search(run)
            known = found.info.run_id if found else None
        return str(known) if known else None

    def search(self, run: str) -> Run | None:
        """What the store has of one of our runs."""
        wanted = f"tags.`{RUN_TAG}` = '{run}'"
        found = self.store.client.search_runs([self.store.experiment], wanted, max_results=1)
        return found[0] if found else None

    def _file(self, path: Path) -> int:
        state = self._state(path)
        run = _Run(self, path, state)
        count = 0
        for event, offset in read_events(path, int(state.get("offset", 0))):
            run.take(event, offset)
            count += 1
        run.flush()
        run.close_if_dead()
        return count

    def _state(self, path: Path) -> dict[str, Any]:
        state = read_state(path)
        return state if state.get("store") == self._identity else {"store": self._identity}


class _Run:
    """The delivery of one spool file: numbers, parameters and tags in batches, the rest one by one."""

    def __init__(self, delivery: Delivery, path: Path, state: dict[str, Any]) -> None:
        self._delivery, self._store, self._path, self._state = delivery, delivery.store, path, state
        self._metrics: list[Metric] = []
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._offset = int(state.get("offset", 0))
        self._handlers: dict[str, Callable[[Event], None]] = {
            "start": self._start,
            "params": lambda event: self._params.update(event["values"]),
            "tags": lambda event: self._tags.update(event["values"]),
            "metrics": self._add_metrics,
            "dataset": self._dataset,
            "checkpoint": self._checkpoint,
            "model": self._model,
            "model_metrics": self._model_metrics,
            "link": self._link,
            "document": self._document,
            "end": self._end,
        }

    @property
    def id(self) -> str:
        return str(self._state["mlflow_run_id"])

    def take(self, event: Event, offset: int) -> None:
        """Applies one event, or keeps it for the next batch; `offset` is where the file stands after it."""
        batched = event["kind"] in ("params", "tags", "metrics")
        if not batched:
            self.flush()
        self._guarded(lambda: self._handlers[event["kind"]](event), event)
        self._offset = offset
        if not batched or len(self._metrics) + len(self._params) + len(self._tags) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Sends the batch and remembers how far the file was delivered."""
        if self._metrics or self._params or self._tags:
            batch = (list(self._metrics), _params(self._params), _tags(self._tags))
            self._guarded(
                lambda: self._send(*batch), {"kind": "batch", "params": self._params, "tags": self._tags}
            )
            self._metrics, self._params, self._tags = [], {}, {}
        if self._offset != self._state.get("offset"):
            self._state["offset"] = self._offset
            write_state(self._path, self._state)

    def close_if_dead(self) -> None:
        """Marks the run of a process that was killed, and clears away what is delivered of one that is
        gone."""
        writer = self._state.get("writer")
        if "mlflow_run_id" not in self._state or (writer and ProcessId(*writer).alive()):
            return
        with open(self._path, "rb") as handle:
            handle.seek(self._offset)
            if b"\n" in handle.read():
                return  # an event came this moment: the next delivery sees
        # A line that a kill or a full disk left torn at the end is nothing any more: nobody will end it.
        if not self._state.get("ended"):
            self._store.client.set_terminated(self.id, "KILLED", self._state.get("last"))
            write_state(self._path, {**self._state, "ended": True})
        shutil.rmtree(self._path.with_suffix(".files"), ignore_errors=True)
        self._path.unlink(missing_ok=True)

    def _send(self, metrics: list[Metric], params: list[Param], tags: list[RunTag]) -> None:
        for start in range(0, len(metrics), BATCH):
            self._store.client.log_batch(self.id, metrics=metrics[start : start + BATCH])
        for start in range(0, len(params), 100):
            self._store.client.log_batch(self.id, params=params[start : start + 100])
        for start in range(0, len(tags), 100):
            self._store.client.log_batch(self.id, tags=tags[start : start + 100])

    def _guarded(self, send: Callable[[], Any], event: Event) -> None:
        """Sends; what the server refuses for good is set aside with its words, so that the rest is not held
        up."""
        try:
            send()
        except MlflowException as error:
            if not _refused(error) or event["kind"] == "start":
                raise  # without its run, what follows would have no place
            with open(self._path.parent / "refused.log", "a", encoding="utf-8") as handle:
                handle.write(json.dumps({"run": self._path.stem, "error": str(error), "event": event}) + "\n")

    def _start(self, event: Event) -> None:
        run = self._path.stem
        parent = self._delivery.run_id(event["parent"]) if event["parent"] else None
        tags = {RUN_TAG: run, "mlflow.runName": event["name"]}
        if parent:
            tags[PARENT_TAG] = parent
        self._tags.update(event["tags"])  # in a batch of their own: one that is refused costs no run
        if event["tags"].get("git_commit"):
            self._tags["mlflow.source.git.commit"] = event["tags"]["git_commit"]
        of_pipeline = event["name"] == "pipeline"
        self._params.update(unusual(event["params"]) if of_pipeline else event["params"])
        if "mlflow_run_id" in self._state:
            return
        client = self._store.client
        found = self._delivery.search(run)
        if found is None:
            made = client.create_run(
                self._store.experiment, start_time=event["time"], tags=_cut(tags), run_name=event["name"]
            )
            self._state["mlflow_run_id"] = made.info.run_id
        else:
            self._state["mlflow_run_id"] = found.info.run_id
        if event["parent"] and not parent:
            self._state["parent"] = event["parent"]  # of another machine, which has not told of it yet
        self._state |= {"writer": event["writer"], "last": event["time"]}

    def _add_metrics(self, event: Event) -> None:
        self._metrics += [
            Metric(name, value, event["time"], event["step"]) for name, value in event["values"].items()
        ]
        self._state["last"] = event["time"]

    def _dataset(self, event: Event) -> None:
        profile = json.dumps({"rows": event["rows"]}) if event["rows"] is not None else None
        source = json.dumps({"uri": event["path"]})
        dataset = Dataset(event["name"], event["digest"][:36], "local", source, profile=profile)
        self._store.client.log_inputs(self.id, [DatasetInput(dataset, [])])

    def _checkpoint(self, event: Event) -> None:
        name = f"{event['stage']}-step-{event['step']}"
        tags = {"prefloop.path": event["path"], "prefloop.step": str(event["step"])}
        model = model_delivery.log_pointer(self._store, self.id, _model_name(name), event["step"], tags)
        self._metrics += model_delivery.model_metrics(model, event["values"], event["at"], event["step"])

    def _model(self, event: Event) -> None:
        # Beside this very spool file, wherever the event was written: it may have come from a worker.
        name = Path(event["files"]).name
        files = self._path.with_suffix(".files") / name if name not in ("", "..") else None
        tags = {model_delivery.KEY_TAG: event["key"], "prefloop.path": event["path"]}
        if files is None or not files.is_dir():
            model = model_delivery.log_pointer(self._store, self.id, _model_name(event["stage"]), 0, tags)
        else:
            model, version = model_delivery.log_final(
                self._store, self.id, event["stage"], event["key"], event["registered"], files
            )
            self._tags["prefloop.model"] = f"models:/{version.name}/{version.version}"
        if model:
            self._metrics += model_delivery.model_metrics(model, event["values"], event["at"], 0)

    def _model_metrics(self, event: Event) -> None:
        model = model_delivery.find_logged_model(self._store, event["key"]) if event["key"] else None
        self._metrics += model_delivery.model_metrics(model, event["values"], event["time"], 0)

    def _link(self, event: Event) -> None:
        # As file names carry it: MLflow allows no @ in a tag's name, and refuses its whole batch.
        self._tags[f"{LINK}{slug(event['stage'])}"] = self._delivery.run_id(event["run"]) or event["run"]

    def _document(self, event: Event) -> None:
        self._store.client.log_dict(self.id, event["values"], event["name"])

    def _end(self, event: Event) -> None:
        parent = self._delivery.run_id(self._state["parent"]) if "parent" in self._state else None
        if parent:
            self._tags[PARENT_TAG] = parent
        self._store.client.set_terminated(self.id, event["status"], event["time"])
        self._state["ended"] = True


def _refused(error: MlflowException) -> bool:
    """True where sending the same once more would be refused once more."""
    if error.error_code == _OF_THE_DATABASE:
        return any(word in str(error) for word in _CONTENT)
    return error.error_code in _REFUSALS


def _model_name(name: str) -> str:
    """MLflow refuses some signs in the names of models."""
    return name.replace("@", "-").replace("/", "-").replace(".", "-").replace(":", "-")


def _cut(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value[:VALUE_CHARACTERS] for name, value in values.items()}


def _params(values: Mapping[str, str]) -> list[Param]:
    return [Param(name, value) for name, value in _cut(values).items()]


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, value) for name, value in _cut(values).items()]
