"""What a stage tells the tracking server, as events in a spool file. Nothing here imports mlflow."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.config.promote import PromoteConfig
from prefloop.config.read import read_section
from tasks.support.flatten import figures, without_nan
from tasks.support.process import identify
from tasks.support.redact import redact_all
from tasks.support.spool import SpoolWriter, new_run_id, spool_folder, state_path
from tasks.support.workspace import PIPELINE_ID

REWARD_NAME = "prefloop-reward"
UNREGISTERED = {"base", "judge"}
"""Models that are recorded by a pointer alone: they are given, or serve to measure."""


class RunTracker:
    """Events of one run.

    Args:
        run: id of the run; a new one by default.
        name: what the run is called: the stage, or the pipeline.
        writer: pid of the process that the run lives and dies with; this one by default.
    """

    def __init__(self, name: str, run: str = "", writer: int = 0) -> None:
        self.name = name
        self.writer = writer or os.getpid()
        self.run = run or new_run_id(name)
        self._spool = SpoolWriter(self.run)
        self._logged_at = 0

    @property
    def known(self) -> bool:
        """True when the run was opened before."""
        return self._spool.path.exists() or state_path(self._spool.path).exists()

    def start(self, *, parent: str = "", params: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """Opens the run under the run `parent`."""
        writer = identify(self.writer)
        self._spool.append(
            "start",
            name=self.name,
            parent=parent,
            writer=[writer.pid, writer.started] if writer else None,
            params=redact_all(params),
            tags=redact_all({name: value for name, value in tags.items() if value is not None}),
        )

    def params(self, values: Mapping[str, Any]) -> None:
        self._spool.append("params", values=redact_all(values))

    def tags(self, values: Mapping[str, Any]) -> None:
        self._spool.append("tags", values=redact_all(values))

    def metrics(self, step: int, values: Mapping[str, Any], prefix: str = "train") -> None:
        """Numbers of one step; a name without a slash goes under `prefix`, and what is not finite is left
        out."""
        named = _prefixed(values, prefix)
        if named:
            self._logged_at = self._spool.append("metrics", step=step, values=named)

    def dataset(self, name: str, path: Path, digest: str, rows: int | None) -> None:
        """An input, known by its DVC hash."""
        self._spool.append("dataset", name=name, path=str(path), digest=digest, rows=rows)

    def checkpoint(self, step: int, folder: Path, values: Mapping[str, float]) -> None:
        """A pointer to a resumable checkpoint, with the metrics of its step."""
        self._spool.append(
            "checkpoint",
            stage=self.name,
            step=step,
            path=str(folder.absolute()),
            at=self._logged_at,
            values=_prefixed(values, "train"),
        )

    def model(self, folder: Path, key: str, registered: str, values: Mapping[str, Any]) -> None:
        """The final model: its files are kept by hard links beside the spool until they are delivered.

        Args:
            key: stage key; a model of a key that was delivered before is linked, not copied again.
            registered: name in the registry, or "" for a pointer alone.
        """
        kept = keep_files(folder, self.run) if registered else None
        self._spool.append(
            "model",
            stage=self.name,
            path=str(folder),
            key=key,
            registered=registered,
            at=self._logged_at,
            values=_prefixed(values, "final"),
            files=str(kept) if kept else "",
        )

    def model_metrics(self, key: str, values: Mapping[str, float]) -> None:
        """Figures of the model of a stage key, measured by another run; with an unknown key, of the run
        alone."""
        self._spool.append("model_metrics", key=key, values=dict(values))

    def link(self, stage: str, run: str) -> None:
        """Says which run made the output of a stage that did not run this time."""
        self._spool.append("link", stage=stage, run=run)

    def document(self, name: str, values: Mapping[str, Any]) -> None:
        """A JSON file among the run's artifacts, in place of an earlier one of that name."""
        self._spool.append("document", name=name, values=without_nan(values))

    def end(self, status: str) -> None:
        """Closes the run: FINISHED, FAILED or KILLED."""
        self._spool.append("end", status=status)
        self._spool.sync()

    @property
    def error(self) -> OSError | None:
        """The first failure to write the spool, if any."""
        return self._spool.error


def _prefixed(values: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Numbers under MLflow names: "loss" becomes "train/loss"; figures by prompt kind stay in the files
    alone."""
    named = {name: value for name, value in figures(values).items() if "by_kind" not in name.split(".")}
    return {name if "/" in name else f"{prefix}/{name}": value for name, value in named.items()}


def registered_name(model: str) -> str:
    """The registry's name for the model that a stage wrote to models/<model>; "" when it is not
    registered."""
    if model in UNREGISTERED:
        return ""
    return REWARD_NAME if model == "reward" else read_section("promote", PromoteConfig).model


def keep_files(folder: Path, run: str) -> Path | None:
    """Hard links (copies across file systems) of a folder's files beside the spool; None when the disk
    refuses.

    Stages replace outputs whole, so a link keeps naming the old bytes when a later run makes the folder anew.
    """
    target = spool_folder() / f"{run}.files" / folder.name
    try:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target, copy_function=_link)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        return None
    return target


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def pipeline_id() -> str:
    """The pipeline run that this process belongs to.

    The flow names it; a bare `dvc repro` gets one made of dvc's process, a stage started by hand none ("").
    """
    named = os.environ.get(PIPELINE_ID)
    if named:
        return named
    return _dvc_run() if "DVC_STAGE" in os.environ else ""


def _dvc_run() -> str:
    import psutil

    for parent in psutil.Process().parents():
        try:
            command = parent.cmdline()
        except psutil.Error:
            continue
        if any(Path(word).name == "dvc" for word in command[:3]) or command[1:3] == ["-m", "dvc"]:
            return f"dvc-{int(parent.create_time())}-{parent.pid}"
    return ""
