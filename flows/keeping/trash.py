"""Removing a folder at one stroke: it is renamed first, so nobody ever finds half of it."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from flows.settings import STATE


class Trash:
    """`.prefloop/trash`. What a killed call left in it, the next one removes."""

    def __init__(self, root: Path) -> None:
        self.folder = root / STATE / "trash"

    def take(self, path: Path) -> None:
        """Makes a file or folder disappear; its bytes are freed by `empty`."""
        if not os.path.lexists(path):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{uuid.uuid4().hex}-{path.name.lstrip('.')}"
        try:
            os.replace(path, target)
        except OSError:  # on another file system
            _remove(path)

    def empty(self) -> None:
        """Frees what was taken."""
        _remove(self.folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
