"""A time of day of their own for a run's processes, which can be set while they live."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


def available() -> bool:
    """Linux, with a C compiler."""
    return sys.platform == "linux" and shutil.which("cc") is not None


class Clock:
    """What `clock.c` does.

    Args:
        folder: where the library and the clock's file lie.
    """

    def __init__(self, folder: Path) -> None:
        self._library, self._shift = folder / "clock.so", folder / "clock"
        if not self._library.exists():
            words = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(self._library)]
            subprocess.run([*words, str(SOURCE), "-ldl"], check=True)
        if not self._shift.exists():
            self.set(0)

    def variables(self) -> Mapping[str, str]:
        """Environment of the processes that live by it."""
        return {"LD_PRELOAD": str(self._library), "SOAK_CLOCK": str(self._shift)}

    def set(self, seconds: int) -> None:
        """Lets it be `seconds` later than it is, for processes that live already, too."""
        with open(self._shift, "r+b" if self._shift.exists() else "wb") as handle:
            handle.write(seconds.to_bytes(8, sys.byteorder, signed=True))
