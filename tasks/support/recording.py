"""The recorder behind a stage's training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.support.curve import Curve
from tasks.support.progress import Progress
from tasks.support.signals import StopFlag
from tasks.support.tracking import RunTracker


class StageRecorder:
    """Passes a trainer's reports on to the learning curve, the progress line and the tracking spool.

    Args:
        note_cost: called after each step; keeps what the stage cost so far where that is due.

    Attributes:
        resumed_from: the step that training went on after, or None.
    """

    def __init__(
        self,
        curve: Curve,
        progress: Progress,
        tracker: RunTracker,
        stop: StopFlag,
        note_cost: Callable[[], None],
    ) -> None:
        self.curve = curve
        self.resumed_from: int | None = None
        self._progress, self._tracker, self._stop = progress, tracker, stop
        self._note_cost = note_cost
        self._latest: dict[str, float] = {}

    def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self.curve.append(step, values)
        self._progress.update(step, total, values)
        self._tracker.metrics(step, values)
        self._latest = dict(values)
        self._note_cost()

    def resume(self, step: int) -> None:
        """Cuts the curve back to `step`, and tells the tracking server the rows that an earlier process
        logged."""
        self.curve.cut(step)
        self._progress.start(step)
        if step == 0:
            return
        self.resumed_from = step
        self._progress.say(f"goes on after step {step}")
        self._tracker.tags({"prefloop.resumed_from_step": step})
        for row in self.curve.rows():
            self._tracker.metrics(int(row["step"]), {name: row[name] for name in row if name != "step"})

    def checkpoint(self, step: int, folder: Path) -> None:
        self.curve.sync()
        self._tracker.checkpoint(step, folder, self._latest)

    def say(self, text: str) -> None:
        self._progress.say(text)

    def stop_requested(self) -> bool:
        self._stop.patient = True
        return self._stop.number is not None
