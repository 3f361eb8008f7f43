"""What a training loop tells the outside world, and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Recorder(Protocol):
    """Receives a trainer's progress; tracking servers and terminals stand behind it."""

    def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Reports the metrics of optimiser step `step` (1-based) of `total`."""

    def resume(self, step: int) -> None:
        """Training goes on after `step`: what was logged for later steps is to be forgotten."""

    def checkpoint(self, step: int, folder: Path) -> None:
        """A resumable checkpoint of `step` stands at `folder`."""

    def say(self, text: str) -> None:
        """One line for the person who watches."""

    def stop_requested(self) -> bool:
        """True when the process was asked to end: the trainer saves a checkpoint and raises StopRequested."""


class Silent:
    """A recorder that keeps metrics and lines in memory, for tests and scripts."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.lines: list[str] = []

    def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self.rows.append({"step": float(step), **values})

    def resume(self, step: int) -> None:
        self.rows = [row for row in self.rows if row["step"] <= step]

    def checkpoint(self, step: int, folder: Path) -> None:
        return None

    def say(self, text: str) -> None:
        self.lines.append(text)

    def stop_requested(self) -> bool:
        return False
