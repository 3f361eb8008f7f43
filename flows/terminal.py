"""What a person sees of a run: the stages' lines as they come, the stage's name in front of each."""

from __future__ import annotations

import re
import shutil
import sys
import threading
from typing import TextIO

from prefloop.printable import printable, printable_line

_PROGRESS = re.compile(r"\bstep \d+/\d+\b")


class Terminal:
    """Writes lines of stages that run side by side.

    On a terminal the progress of each running stage keeps a line of its own at the bottom and is redrawn
    in place; elsewhere every line is written as it comes.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._quiet = quiet
        self._progress: dict[str, str] = {}
        self._drawn = 0
        self._lock = threading.RLock()  # a signal handler may speak while this thread does

    def line(self, stage: str, text: str) -> None:
        """Shows one line that `stage` printed."""
        text = printable_line(text)
        shown = text if text.startswith(f"{stage} ") else f"{stage}  {text}"
        with self._lock:
            if self._live and _PROGRESS.search(text):
                self._progress[stage] = shown
                self._draw()
            else:
                self._draw(shown)

    def say(self, text: str = "") -> None:
        """Shows one line of the pipeline's own."""
        with self._lock:
            self._draw(printable(text))

    def done(self, stage: str) -> None:
        """Ends the progress line of a stage, leaving its last state above."""
        with self._lock:
            last = self._progress.pop(stage, None)
            self._draw(last)

    def _draw(self, text: str | None = None) -> None:
        if self._quiet:
            return
        try:
            if self._drawn:
                self._stream.write(f"\x1b[{self._drawn}F\x1b[J")
            if text is not None:
                self._stream.write(text + "\n")
            width = shutil.get_terminal_size().columns - 1
            for line in self._progress.values():
                self._stream.write(line[:width] + "\n")
            self._drawn = len(self._progress)
            self._stream.flush()
        except (OSError, ValueError):
            self._quiet = True  # nobody reads any more: no reason to stop the run
