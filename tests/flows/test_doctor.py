"""The doctor finds what is wrong, says what to do, and takes nothing from anybody."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows.checks import installation, services, workspace
from flows.leftovers import mark_unfinished
from tasks.support.locks import held
from tasks.support.workspace import slug

GONE = 2**22 + 7
"""A pid beyond what the kernel gives out by default."""


def versions(**known: str):  # type: ignore[no-untyped-def]
    def version(name: str) -> str:
        try:
            return known[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    return version


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\nrequires-python = ">=3.11,<3.14"\ndependencies = ["alpha>=1,<2", "beta<3"]\n'
    )
    (tmp_path / "constraints.txt").write_text(
        "# pins\nalpha==1.5\nbeta==2.0\ntorch==2.13.0\nonly-old==1 ; python_full_version < '3.0'\n"
    )
    return tmp_path


def test_a_missing_package_is_named(project: Path) -> None:
    check = installation.packages(project, versions(alpha="1.5"))
    assert (check.level, check.found) == ("broken", "missing: beta")
    assert "pip install" in check.remedy


def test_a_version_that_cannot_work_is_named(project: Path) -> None:
    check = installation.packages(project, versions(alpha="1.5", beta="3.1"))
    assert (check.level, check.found) == ("broken", "wrong versions: beta 3.1 (wanted <3)")


def test_versions_are_held_against_the_pins(project: Path) -> None:
    # A local version is the same release; what a marker leaves out, or nobody installed, is not looked at.
    same = versions(alpha="1.5", beta="2.0", torch="2.13.0+cpu", only_old="9")
    assert installation.pins(project, same).found == "all 3 as in constraints.txt"
    other = installation.pins(project, versions(alpha="1.4", beta="2.0"))
    assert other.level == "note"
    assert other.found == "1 differ from constraints.txt: alpha 1.4 (==1.5)"


@pytest.mark.parametrize(
    ("version", "level"),
    [((3, 10, 14), "broken"), ((3, 11, 0), "ok"), ((3, 13, 9), "ok"), ((3, 14, 0), "broken")],
)
def test_python_is_one_that_the_project_takes(
    project: Path, version: tuple[int, int, int], level: str
) -> None:
    assert installation.python(version, project).level == level


def test_a_gpu_that_is_asked_for_and_absent_is_broken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {
        "torch": "2.13.0",
        "cores": 2,
        "memory_gib": 8.0,
        "driver": False,
        "gpus": [],
        "error": "compute.device is cuda, but no CUDA GPU was found",
        "remedy": "set compute.device to auto or cpu",
    }
    monkeypatch.setattr(
        installation.subprocess,
        "run",
        lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=json.dumps(answer), stderr=""),
    )
    torch, device = installation.hardware(project)
    assert torch.level == "ok"
    assert (device.level, device.remedy) == ("broken", "set compute.device to auto or cpu")


def test_a_torch_that_does_not_import_is_broken(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "torch.py").write_text('raise ImportError("libtorch is missing")\n')
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))
    (check,) = installation.hardware(project)
    assert check.level == "broken"
    assert "libtorch is missing" in check.found


def test_disk() -> None:
    assert workspace.disk(100 << 20).level == "broken"
    assert workspace.disk(3 << 30).level == "note"
    assert workspace.disk(50 << 30).level == "ok"


def test_a_folder_without_git_and_dvc(tmp_path: Path) -> None:
    assert workspace.git(tmp_path).level == "broken"
    assert workspace.dvc(tmp_path).found == ".dvc/config is missing"


def test_git_without_a_commit_and_with_one(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    assert workspace.git(tmp_path).level == "note"
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "a"], cwd=tmp_path, check=True)
    (tmp_path / "a").write_text("2")
    assert workspace.git(tmp_path).found.endswith("1 files changed since")


def test_locks_of_dead_processes_are_told_from_live_ones(tmp_path: Path) -> None:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / ".dvc" / "config").touch()
    (tmp_path / "dvc.yaml").touch()
    rwlock = tmp_path / ".dvc" / "tmp" / "rwlock"
    rwlock.write_text(json.dumps({"models/sft": {"write": {"pid": GONE, "cmd": "repro"}}}))
    assert workspace.dvc(tmp_path).found == f"locks of processes that ended (pids {GONE})"
    rwlock.write_text(json.dumps({"models/sft": {"read": [{"pid": os.getpid(), "cmd": "repro"}]}}))
    assert workspace.dvc(tmp_path).level == "ok"


def test_a_live_run_is_named_and_not_disturbed(tmp_path: Path) -> None:
    lock = tmp_path / ".prefloop" / "locks" / "sft.lock"
    with held(lock, "stage sft"):
        (check,) = workspace.locks(tmp_path)
        assert check.found == f"in hand now: sft (pid {os.getpid()})"
    (check,) = workspace.locks(tmp_path)
    assert check.level == "ok"


def test_a_stage_that_runs_now_is_not_cut_off(tmp_path: Path) -> None:
    for stage in ("sft", "ppo@ppo"):
        mark_unfinished(tmp_path, stage)
    assert workspace.cut_off(tmp_path).found == "ppo@ppo, sft"
    with held(tmp_path / f".prefloop/locks/{slug('ppo@ppo')}.lock", "stage ppo@ppo"):
        assert workspace.cut_off(tmp_path).found == "sft"


def test_a_wrong_params_file_is_broken(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("sft: {epoch: 1}\n")
    check = workspace.parameters(tmp_path)
    assert (check.level, check.found) == ("broken", "unknown key sft.epoch")
    assert check.remedy == "did you mean sft.epochs?"


def test_a_database_that_is_sound_locked_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    assert services.database("mlflow", path).level == "ok"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert services.database("mlflow", path).level == "ok"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    locked = services.database("mlflow", path, wait_seconds=0.05)
    assert (locked.level, "locked" in locked.found) == ("note", True)
    writer.close()
    path.write_bytes(b"this is no database" * 100)
    assert services.database("mlflow", path).level == "broken"


def test_a_named_server_that_is_away_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.ports import free_port

    address = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", address)
    check = services.prefect(tmp_path)
    assert check.level == "broken"
    assert address in check.found


@pytest.mark.slow
def test_the_command_speaks_json_and_by_its_exit_code(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli.main", "doctor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    report = json.loads(result.stdout)
    assert result.returncode == 1, "an empty folder is no workspace"
    assert not report["ok"]
    broken = {check["name"] for check in report["checks"] if check["level"] == "broken"}
    assert {"git", "dvc", "params.yaml"} <= broken
    assert all(check["remedy"] for check in report["checks"] if check["level"] != "ok")
