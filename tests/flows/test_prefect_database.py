"""The empty database that a workspace begins with."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows import prefect_database
from flows.prefect_database import OTHERWISE, made_database, provide_database


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for it."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    for name in OTHERWISE:
        monkeypatch.delenv(name, raising=False)
    path = made_database()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"empty")
    return path


def test_a_new_workspace_gets_a_copy_and_an_old_one_keeps_its_own(made: Path, tmp_path: Path) -> None:
    home = tmp_path / "workspace" / "prefect"
    assert provide_database(home)
    assert [file.name for file in home.iterdir()] == ["prefect.db"]
    (home / "prefect.db").write_bytes(b"runs of last year")
    assert not provide_database(home)
    assert (home / "prefect.db").read_bytes() == b"runs of last year"
    assert made.read_bytes() == b"empty"


def test_without_one_or_with_another_database_named_nothing_is_copied(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OTHERWISE[0], "postgresql+asyncpg://somewhere/prefect")
    assert not provide_database(tmp_path / "home")
    monkeypatch.delenv(OTHERWISE[0])
    made.unlink()
    assert not provide_database(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_another_version_of_prefect_has_another_one(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_database.importlib.metadata, "version", lambda _: "4.0.0")
    assert made_database() != made
    assert made_database().parent == made.parent


@pytest.mark.slow
def test_it_has_todays_tables_and_nothing_in_them(tmp_path: Path) -> None:
    target = tmp_path / "made.db"
    code = "import sys; from pathlib import Path; from flows.prefect_database import make_database; "
    subprocess.run([sys.executable, "-c", code + f"make_database(Path({str(target)!r}))"], check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["made.db"]
    with closing(sqlite3.connect(target)) as database:
        tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        filled = [t for t in tables if database.execute(f'select 1 from "{t}" limit 1').fetchone()]
    assert "flow_run" in tables
    assert filled == ["alembic_version"]
