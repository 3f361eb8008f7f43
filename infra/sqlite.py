"""Copies a SQLite database that may be in use, a state of one moment: python infra/sqlite.py SOURCE TARGET"""

from __future__ import annotations

import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path


def copy(source: Path, target: Path) -> None:
    """Writes a copy beside the target, looks it over, and puts it in the target's place, whole.

    Raises:
        sqlite3.DatabaseError: the source is no sound database; the target stays as it was.
    """
    if not source.is_file():
        raise sqlite3.OperationalError(f"there is no {source}")
    draft = target.with_name(f"{target.name}.part")
    draft.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(draft)) as new:
        old.backup(new)
        (said,) = new.execute("PRAGMA integrity_check").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(f"{source} is damaged: {said}")
    for left in (target.with_name(f"{target.name}-{kind}") for kind in ("wal", "shm")):
        left.unlink(missing_ok=True)  # of the database that is replaced
    os.replace(draft, target)


if __name__ == "__main__":
    try:
        copy(Path(sys.argv[1]), Path(sys.argv[2]))
    except (sqlite3.Error, OSError) as error:
        sys.exit(f"sqlite.py: {error}")
