"""An empty database for Prefect's server, made once in an environment: a workspace begins with a copy.

    python -m flows.prefect_database

A hundred migrations lead from nothing to the tables of today, and a new workspace's first run would wait
for them. The Makefile makes the database after an installation; without it the server migrates by itself.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

OTHERWISE = ("PREFECT_API_DATABASE_CONNECTION_URL", "PREFECT_SERVER_DATABASE_CONNECTION_URL")
"""Environment variables that name another database than the one in PREFECT_HOME."""


def made_database() -> Path:
    """Where the environment keeps it, by Prefect's version."""
    version = importlib.metadata.version("prefect")
    return Path(sys.prefix) / "share" / "prefloop" / f"prefect-{version}.db"


def provide_database(home: Path) -> bool:
    """Copies it to where Prefect has its own, `home`, unless there is one.

    Returns:
        True where it was copied.
    """
    target, source = home / "prefect.db", made_database()
    if target.exists() or not source.exists() or any(name in os.environ for name in OTHERWISE):
        return False
    home.mkdir(parents=True, exist_ok=True)
    draft = home / f"prefect.db-{os.getpid()}"
    shutil.copyfile(source, draft)
    os.replace(draft, target)
    return True


def make_database(target: Path) -> None:
    """Lets Prefect's migrations make it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as home:
        # Read when Prefect is imported, which so has to be here.
        os.environ["PREFECT_HOME"] = home
        os.environ[OTHERWISE[0]] = f"sqlite+aiosqlite:///{home}/prefect.db"
        from prefect.server.database import provide_database_interface

        asyncio.run(provide_database_interface().create_db())
        whole = Path(home) / "whole.db"
        with (
            closing(sqlite3.connect(Path(home) / "prefect.db")) as source,
            closing(sqlite3.connect(whole)) as copy,
        ):
            source.backup(copy)  # with what still stands in its log
        os.replace(whole, target)


if __name__ == "__main__":
    if not made_database().exists():
        make_database(made_database())
