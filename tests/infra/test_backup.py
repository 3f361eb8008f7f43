"""infra/backup.sh and restore.sh on a real PostgreSQL: what was saved comes back, or nothing changes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA
from tests.servers.postgres import Postgres

pytestmark = pytest.mark.slow


@pytest.fixture
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a PostgreSQL server on loopback, without a database's name."""
    if not shutil.which("pg_dump"):
        pytest.skip("PostgreSQL's client is not installed")
    with Postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server.url()


def sql(url: str, command: str) -> str:
    words = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"]
    done = subprocess.run([*words, "-c", command, url], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def script(name: str, *arguments: str, code: int = 0) -> str:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        ["bash", str(INFRA / name), *arguments], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_what_was_saved_comes_back_and_a_damaged_backup_changes_nothing(postgres, tmp_path):
    urls = [f"{postgres}/{name}" for name in ("prefect", "mlflow")]
    for url in urls:
        sql(f"{postgres}/postgres", f"CREATE DATABASE {url.rsplit('/', 1)[1]}")
        sql(url, "CREATE TABLE runs (name text, score real)")
        sql(url, "INSERT INTO runs VALUES ('ppo', 2.5), ('dpo', 1.5)")
    backup = Path(script("backup.sh", str(tmp_path), *urls).strip())
    assert {path.name for path in backup.iterdir()} == {"prefect.dump", "mlflow.dump", "SHA256SUMS"}
    assert backup.stat().st_mode & 0o077 == 0, "nobody else reads a backup"

    sql(urls[1], "DELETE FROM runs WHERE name = 'ppo'; CREATE TABLE later (id int)")
    damaged = tmp_path / "damaged"
    shutil.copytree(backup, damaged)
    with open(damaged / "mlflow.dump", "ab") as handle:
        handle.write(b"x")
    assert "is damaged; nothing was changed" in script("restore.sh", str(damaged), "mlflow", urls[1], code=3)
    assert sql(urls[1], "SELECT count(*) FROM runs") == "1"

    assert "mlflow restored" in script("restore.sh", str(backup), "mlflow", urls[1])
    assert sql(urls[1], "SELECT name, score FROM runs ORDER BY name") == "dpo|1.5\nppo|2.5"
    sql(f"{postgres}/postgres", "CREATE DATABASE elsewhere")
    script("restore.sh", str(backup), "prefect", f"{postgres}/elsewhere")
    assert sql(f"{postgres}/elsewhere", "SELECT sum(score) FROM runs") == "4"


def test_a_database_that_does_not_answer_leaves_no_backup_that_looks_whole(postgres, tmp_path):
    script("backup.sh", str(tmp_path), f"{postgres}/not-there", code=1)
    assert all(path.suffix == ".part" for path in tmp_path.iterdir())


def test_one_machine_is_saved_while_it_writes_and_comes_back(tmp_path):
    database, artifacts = tmp_path / "mlflow.db", tmp_path / "artifacts"
    (artifacts / "1").mkdir(parents=True)
    (artifacts / "1/weights").write_text("of ppo")
    with closing(sqlite3.connect(database, isolation_level=None)) as live:
        live.execute("PRAGMA journal_mode=wal")
        live.execute("CREATE TABLE runs (name text)")
        live.execute("INSERT INTO runs VALUES ('ppo')")
        live.execute("BEGIN")
        live.execute("INSERT INTO runs VALUES ('half-way')")
        said = script("backup.sh", str(tmp_path / "saved"), f"sqlite:///{database}", str(artifacts))
        live.execute("ROLLBACK")
        live.execute("DELETE FROM runs")
    backup = Path(said.strip())
    assert (backup / "artifacts/1/weights").read_text() == "of ppo"
    restore = ("restore.sh", str(backup), "mlflow.db", f"sqlite:///{database}")
    assert "mlflow.db restored" in script(*restore)
    with closing(sqlite3.connect(database)) as restored:
        assert restored.execute("SELECT name FROM runs").fetchall() == [("ppo",)]

    (backup / "mlflow.db").write_bytes(b"x")
    assert "is damaged; nothing was changed" in script(*restore, code=3)
    (tmp_path / "broken.db").write_text("no database" * 100)
    said = script("backup.sh", str(tmp_path / "another"), f"sqlite:///{tmp_path}/broken.db", code=1)
    assert "sqlite.py: file is not a database" in said
    said = script(
        "backup.sh", str(tmp_path / "other"), f"sqlite:///{database}", f"sqlite:///{database}", code=2
    )
    assert "two are called mlflow.db" in said


def test_without_docker_compose_it_says_what_to_name(tmp_path, monkeypatch):
    programs, backups = tmp_path / "programs", tmp_path / "backups"
    programs.mkdir()
    for name in ("bash", "dirname", "date"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    assert "name the databases, sqlite:///FILE or" in script("backup.sh", str(backups), code=2)
    assert not backups.exists()


def test_the_compose_files_databases_keep_each_other_out(postgres, tmp_path):
    """infra/compose/databases.sh, with its secrets, makes roles that reach their own databases alone."""
    (tmp_path / "secrets").mkdir()
    for name in ("prefect", "mlflow"):
        (tmp_path / "secrets" / f"{name}_db_password").write_text(f"it's {name}")
    text = (INFRA / "compose/databases.sh").read_text().replace("/run/secrets", str(tmp_path / "secrets"))
    (tmp_path / "databases.sh").write_text(text)
    host, _, port = postgres.rpartition("@")[2].partition(":")
    variables = {**os.environ, "PGHOST": host, "PGPORT": port, "POSTGRES_USER": "postgres"}
    subprocess.run(["bash", str(tmp_path / "databases.sh")], env=variables, check=True)
    found = sql(
        f"{postgres}/postgres",
        "SELECT r, d FROM unnest('{prefect,mlflow}'::text[]) r, "
        "unnest('{prefect,mlflow,mlflow_auth}'::text[]) d "
        "WHERE has_database_privilege(r, d, 'CONNECT') ORDER BY 1, 2",
    )
    assert found == "mlflow|mlflow\nmlflow|mlflow_auth\nprefect|prefect"
    secret = sql(f"{postgres}/postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'mlflow'")
    assert secret.startswith("SCRAM-SHA-256$")
