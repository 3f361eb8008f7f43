"""What every stage does around its work: inputs, outputs, records, signals and errors.

    with Stage.open("sft", SFTConfig) as stage:
        with stage.output("models/sft") as folder:
            ...

A stage is a process of its own. It ends with exit code 0, the code of the PrefloopError that stopped it, or
130 / 143 when it was asked to end; its declared outputs appear whole or not at all.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from prefloop.config.read import read_section, read_seed
from prefloop.config.training import TrainingConfig
from prefloop.files import atomic_file, atomic_folder, read_json, write_json
from prefloop.training.environment import Environment, load_environment
from prefloop.training.recorder import Recorder, Silent
from tasks.support import delivery_process
from tasks.support.code import confirm, keep, stage_code
from tasks.support.curve import Curve, write_csv
from tasks.support.ending import ended_well
from tasks.support.flatten import flatten, without_nan
from tasks.support.gpus import gpus_used
from tasks.support.keys import dvc_hash, locked_hashes, stage_key
from tasks.support.locks import held
from tasks.support.pipeline import bare_pipeline
from tasks.support.progress import Progress
from tasks.support.ranks import Finished, following, place
from tasks.support.recording import StageRecorder
from tasks.support.runs import Clock, git_state
from tasks.support.signals import StopFlag
from tasks.support.spent import Spent
from tasks.support.spool import mlflow_run_id
from tasks.support.tracking import RunTracker, pipeline_id, registered_name
from tasks.support.workspace import metrics_file, slug, state_folder

C = TypeVar("C")
T = TypeVar("T")

ENVIRONMENT = Path("runs/environment.json")
LAST_STAGE = "report"
"""After this one a bare `dvc repro` is complete: its figures and data hashes are final."""


class Stage(Generic[C]):
    """One run of one stage. Open it with `Stage.open`.

    Attributes:
        name: the stage as dvc.yaml names it, with its part: "sft", "evaluate@ppo".
        part: what follows the `@`, or "".
        label: its name in file names, unique among all stages: "sft", "evaluate-ppo", a policy's own name.
        config: the stage's section of params.yaml.
        seed: the run's seed.
        code: the files that its module consists of; None where no dvc.yaml names the module.
        key: stage key, hex SHA-256 over everything the result follows from.
        scratch: folder for resumable state, kept when the stage fails and removed when it succeeds.
        progress: writes lines to the terminal.
        follows: True in a process that shares the training of another, rank 0, which alone shows, tracks and
            writes (see tasks/support/ranks.py).
    """

    def __init__(self, name: str, part: str, config: C, seed: int, stop: StopFlag) -> None:
        self.name, self.part, self.config, self.seed, self.stop = name, part, config, seed, stop
        self.code = stage_code(name)
        confirm(name, self.code)
        self.key = stage_key(
            name,
            {"config": dataclasses.asdict(config), "seed": seed},  # type: ignore[call-overload]
            code=self.code,
        )
        self.label = slug(name)
        self.scratch = state_folder() / "scratch" / self.label / self.key
        self.progress = Progress(name)
        self.follows = place() is not None
        self.resources = ExitStack()
        self.clock = Clock()
        self._spent = Spent(self.scratch)
        self.tracker = RunTracker(name)
        self.figures: dict[str, Any] = {}
        self._models: list[Path] = []
        self._git = git_state()
        self._recorder: StageRecorder | None = None
        self._bare = bare_pipeline()

    @classmethod
    def open(
        cls, name: str, config: type[C], *, part: str = "", section: str = ""
    ) -> AbstractContextManager[Stage[C]]:
        """Runs the block as stage `name` (with `part`: `name@part`).

        Args:
            name: stage of dvc.yaml.
            config: dataclass of its section of params.yaml.
            part: the item of a `foreach` stage.
            section: the section, where it is not called like the stage.
        """
        return cls.run(name, part, lambda: read_section(section or name, config))

    @classmethod
    @contextmanager
    def run(cls, name: str, part: str, read: Callable[[], C]) -> Iterator[Stage[C]]:
        """The same, with a configuration that `read` gives: an error in it is the stage's, too."""
        full = f"{name}@{part}" if part else name
        stop = StopFlag()
        if place():
            with ended_well(full, stop), following():
                stage = cls(full, part, read(), read_seed(), stop)
                with stage.resources:
                    yield stage
            return
        with ended_well(full, stop):
            stage = cls(full, part, read(), read_seed(), stop)
            with ExitStack() as stack:
                stack.enter_context(held(Path(".prefloop/locks") / f"{stage.label}.lock", f"stage {full}"))
                stack.enter_context(
                    held(stage.scratch.with_suffix(".lock"), f"the scratch folder of stage {full}")
                )
                stack.enter_context(stop.installed())
                stack.enter_context(delivery_process.alongside())
                stage._begin()
                try:
                    with stage.resources:
                        yield stage
                    stage._finish()
                except BaseException as error:
                    stage._fail(error)
                    raise

    @property
    def compute(self) -> Environment:
        """The environment that the stage `environment` resolved."""
        return load_environment(ENVIRONMENT)

    def hold(self, resource: AbstractContextManager[T]) -> T:
        """Enters a context that lasts as long as the stage's block."""
        return self.resources.enter_context(resource)

    @property
    def recorder(self) -> Recorder:
        """Where a training loop reports: progress line, learning curve, tracking."""
        if self.follows:
            return Silent()
        if self._recorder is None:
            curve = Curve(self.scratch / "curve.jsonl")
            self._recorder = StageRecorder(
                curve, self.progress, self.tracker, self.stop, self._note_cost_if_due
            )
        return self._recorder

    def output(self, path: Path | str) -> AbstractContextManager[Path]:
        """An output folder that takes its place when the block ends well; a folder of models/ is tracked as
        one."""
        self._only_rank_0()
        if Path(path).parts[:1] == ("models",):
            self._models.append(Path(path))
        return atomic_folder(path)

    def output_file(self, path: Path | str, mode: str = "w") -> AbstractContextManager[IO[Any]]:
        """An output file that takes its place when the block ends well."""
        self._only_rank_0()
        return atomic_file(path, mode)

    def metrics(self, values: Mapping[str, Any], path: Path | str | None = None) -> None:
        """Writes the stage's figures, by default to its `metrics_file`; what is not finite becomes null."""
        self._only_rank_0()
        self.figures = without_nan(values)
        write_json(path or metrics_file(self.name), self.figures)
        self.tracker.metrics(0, self.figures, "final")

    def dataset(self, name: str, path: Path | str, rows: int | None = None) -> None:
        """Records an input under the hash that DVC has of it."""
        if self.follows:
            return
        path = Path(path)
        self.tracker.dataset(name, path, dvc_hash(path, locked_hashes()), rows)

    def say(self, text: str) -> None:
        """One line for the person who watches."""
        if not self.follows:
            self.progress.say(text)

    def _only_rank_0(self) -> None:
        """Ends the other processes: from the first output on, only rank 0 has something to do."""
        if self.follows:
            raise Finished

    def _begin(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        if self._bare is not None:
            self._bare.begin()
        parameters = flatten(dataclasses.asdict(self.config), self.name.partition("@")[0])  # type: ignore[call-overload]
        self.tracker.start(
            parent=pipeline_id(),
            params={"seed": self.seed, **parameters},
            tags={
                "prefloop.stage": self.name,
                "prefloop.key": self.key,
                **self._git,
                **flatten(self._environment(), "environment"),
            },
        )

    def _finish(self) -> None:
        self.progress.close()
        resumed = self._recorder.resumed_from if self._recorder else None
        rows = self._recorder.curve.rows() if self._recorder else []
        if rows or isinstance(self.config, TrainingConfig):  # a model that was given has a curve without rows
            write_csv(Path("plots") / f"{self.label}.csv", rows)
        for model in self._models:
            self.tracker.model(model, self.key, registered_name(model.name), self.figures)
        cost = self._track_cost()
        self.tracker.end("FINISHED")
        write_json(
            Path("runs") / f"{self.label}.json",
            {
                "stage": self.name,
                "key": self.key,
                "run": self.tracker.run,
                "mlflow_run_id": mlflow_run_id(self.tracker.run),
                "pipeline": pipeline_id() or None,
                "environment": self._environment(),
                "resumed_from_step": resumed,
                "code": self.code.record() if self.code else None,
                **self._git,
                **self.clock.times(),
                **cost,
            },
        )
        keep(self.name, self.code)
        if self._bare is not None:
            self._bare.finish(final=self.name == LAST_STAGE)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _fail(self, error: BaseException) -> None:
        self.progress.close()
        stopped = self.stop.number is not None
        self.tracker.tags(
            {"prefloop.error": "stopped by a signal" if stopped else f"{type(error).__name__}: {error}"}
        )
        self._track_cost()
        self._spent.note(self._own_cost())
        self.tracker.end("KILLED" if stopped else "FAILED")
        if self._bare is not None:
            self._bare.status = "KILLED" if stopped else "FAILED"
            self._bare.finish(final=False)

    def _track_cost(self) -> dict[str, float]:
        """Tells the tracking server what the stage cost so far, in all its processes, and returns it."""
        cost = self._spent.with_own(self._own_cost())
        self.tracker.metrics(0, cost, "cost")
        return cost

    def _own_cost(self) -> dict[str, float]:
        """Of this process, and of those that it started."""
        shared = isinstance(self.config, TrainingConfig)
        return self.clock.cost(gpus_used(int(self._environment().get("processes", 1)) if shared else 1))

    def _note_cost_if_due(self) -> None:
        if self._spent.due:
            self._spent.note(self._own_cost())

    def _environment(self) -> dict[str, Any]:
        return dict(read_json(ENVIRONMENT)) if ENVIRONMENT.exists() else {}
