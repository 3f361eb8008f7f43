"""When a training's steps end, and how much memory it takes, noted on either side by the same code.

It stands where `recording.Recording` does in a comparison, and needs torch alone: prefloop's side imports it,
and the peers' scripts find it beside them. Nothing is computed or read back within a step that the training
would not compute or read itself; on a GPU the clock waits for what is queued, as each side's log does.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Clock:
    """Seconds of optimiser steps, on the wall and of processors that were `busy`; their losses and norms;
    tokens sampled; memory."""

    def __init__(self) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.made = time.perf_counter()
        self.times: list[float] = []
        self.busy: list[float] = []
        self.sampled: list[float] = []
        self._losses: list[list[Tensor | float]] = [[]]
        self._norms: list[Tensor | float] = []
        self._memory: dict[str, float] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Measures memory over a training of `model`."""
        before, peak_before = resident(), peak()
        fresh = forget_peak()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        yield
        after = peak()
        self._memory = {"peak": max(after, peak_before), "before": before}
        if fresh:
            self._memory["growth"] = after - before
        if self.device == "cuda":
            self._memory["device_peak"] = float(torch.cuda.max_memory_allocated())

    def add(self, loss: Tensor | float) -> None:
        """Takes what a micro-batch adds to its step's loss."""
        self._losses[-1].append(loss.detach() if isinstance(loss, Tensor) else loss)

    def step(self, norm: Tensor | float = 0.0) -> None:
        """Ends a step (in fact, any point that comes once a step: intervals are what counts)."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        self.busy.append(time.process_time())
        self._norms.append(norm)
        self._losses.append([])

    def completions(self, tokens: float) -> None:
        """Tokens that a step sampled."""
        self.sampled.append(tokens)

    def as_dict(self) -> dict[str, Any]:
        return {
            "seconds": between(self.times),
            "busy": between(self.busy),
            "prepared": self.times[0] - self.made if self.times else 0.0,
            "losses": [sum(float(part) for part in parts) for parts in self._losses[:-1]],
            "norms": [float(norm) for norm in self._norms],
            "sampled": self.sampled,
            "memory": self._memory,
        }


def between(times: list[float]) -> list[float]:
    """The intervals from each to the next."""
    return [later - sooner for sooner, later in pairwise(times)]


def resident() -> float:
    """Memory of this process that is in RAM now (bytes); shared libraries count."""
    return _status("VmRSS") or 0.0


def peak() -> float:
    """The most that it had since its start, or since `forget_peak` (bytes)."""
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def forget_peak() -> bool:
    """Lets `peak` begin anew; False where the system does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _status(name: str) -> float | None:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) * 1024.0
    except OSError:
        pass
    return None
