"""The progress line of a stage: which step, how fast, how long still, and the figures that matter."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TextIO

from prefloop.printable import printable

PLAIN_SECONDS = 2.0
TERMINAL_SECONDS = 0.1
FIGURES = 5
WINDOW = 20


class Progress:
    """Writes `sft  step 120/400  30 %  4.1 it/s  left 0:01:08  loss 1.234` to a stream.

    On a terminal the line is redrawn in place; elsewhere it is written whole, at most every two seconds.
    """

    def __init__(self, stage: str, stream: TextIO | None = None) -> None:
        self.stage = stage
        self.stream = stream if stream is not None else sys.stderr
        self.terminal = self.stream.isatty()
        self._marks: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._shown_at = float("-inf")
        self._drawn = False

    def start(self, step: int) -> None:
        """Begins to count after `step`, so that a resumed stage shows the rate of its own steps."""
        self._marks.clear()
        self._marks.append((time.monotonic(), step))

    def update(self, step: int, total: int, values: Mapping[str, float]) -> None:
        """Shows `step` of `total`, unless a line was shown a moment ago; the last step always shows."""
        now = time.monotonic()
        if not self._marks:
            self._marks.append((now, step - 1))
        self._marks.append((now, step))
        if step < total and now - self._shown_at < (TERMINAL_SECONDS if self.terminal else PLAIN_SECONDS):
            return
        self._shown_at = now
        self._write(progress_line(self.stage, step, total, self._rate(), values))

    def say(self, text: str) -> None:
        """Writes one line of its own."""
        self.close()
        self._emit(f"{self.stage}  {printable(text)}\n")

    def close(self) -> None:
        """Ends a line that was being redrawn."""
        if self._drawn:
            self._drawn = False
            self._emit("\n")

    def _rate(self) -> float:
        (then, first), (now, last) = self._marks[0], self._marks[-1]
        return (last - first) / (now - then) if now > then else 0.0

    def _write(self, line: str) -> None:
        if self.terminal:
            width = max(20, shutil.get_terminal_size().columns - 1)
            self._drawn = True
            self._emit(f"\r\x1b[K{line[:width]}")
        else:
            self._emit(line + "\n")

    def _emit(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it any more: not a reason to stop training


def progress_line(stage: str, step: int, total: int, rate: float, values: Mapping[str, float]) -> str:
    """The text of one progress line; `rate` is in steps a second, 0 when unknown."""
    parts = [stage, f"step {step}/{total}", f"{100 * step // max(total, 1)} %"]
    if rate > 0:
        speed = f"{rate:.1f} it/s" if rate >= 1 else f"{1 / rate:.1f} s/it"
        parts += [speed, f"left {clock((total - step) / rate)}"]
    parts += [f"{name} {value:.4g}" for name, value in list(values.items())[:FIGURES]]
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
