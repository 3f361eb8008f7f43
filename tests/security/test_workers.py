"""Jobs and results that mean harm: a worker runs stages of its workspace, and no other command."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.workers.trust import check_files, check_job
from prefloop.errors import ConfigError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An exchange folder of the worker's own user."""
    monkeypatch.delenv("PREFLOOP_REMOTE", raising=False)
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def job(folder: Path, **changes: str) -> dict[str, str]:
    """What a coordinator asks of a worker, with changes."""
    return {
        "stage": "ppo@ppo-loose", "commit": COMMIT, "pipeline": "run-20260101-000000-123",
        "exchange": str(folder), **changes,
    }  # fmt: skip


def test_an_honest_job_is_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_job(**job(folder))
    check_job(**job(folder, stage=""))
    monkeypatch.setenv("PREFLOOP_REMOTE", str(folder))
    check_job(**job(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "sft; touch ran"},
        {"stage": "../../sft"},
        {"stage": "--force"},
        {"stage": "$(touch ran)"},
        {"commit": "main"},
        {"commit": "--upload-pack=touch ran"},
        {"commit": COMMIT + "\n--force"},
        {"pipeline": "../x"},
        {"exchange": "https://attacker.example/exchange"},
        {"exchange": "s3://attacker/exchange"},
        {"exchange": "ext::sh -c touch% ran"},
        {"exchange": "--upload-pack=touch ran;"},
        {"exchange": "shared"},
        {"exchange": "/tmp/../etc"},
        {"exchange": "/srv/not-there"},
        {"exchange": "/etc/hostname"},
    ],
    ids=lambda changes: "{}={}".format(*next(iter(changes.items()))),
)
def test_a_job_that_asks_for_anything_else_is_refused(folder: Path, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="refused"):
        check_job(**job(folder, **changes))


@pytest.mark.parametrize("named", ["s3://ours/prefloop", "/srv/ours"])
@pytest.mark.parametrize(
    "asked", ["s3://theirs/prefloop", "s3://ours/prefloop/../x", "s3://ours", "/srv/theirs"]
)
def test_an_exchange_other_than_the_one_the_worker_was_told_of(
    named: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("PREFLOOP_REMOTE", named)
    assert check_job(**job(Path(named), exchange=named)) == named
    with pytest.raises(ConfigError, match=r"not .*ours.*: refused\n  remedy: set PREFLOOP_REMOTE"):
        check_job(**job(Path("/"), exchange=asked))


def test_a_folder_of_another_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="not its own user's"):
        check_job(**job(folder))


def test_the_flow_refuses_before_it_touches_anything(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PREFLOOP_WORKER_FOLDER", str(tmp_path / "worker"))
    from flows.workers.stage import remote_stage

    with pytest.raises(ConfigError, match="refused"):
        remote_stage.fn(**job(folder, exchange="https://attacker.example/exchange"), lock="")
    assert not (tmp_path / "worker").exists()


@pytest.mark.parametrize(
    "path", ["../../.bashrc", "/etc/cron.d/x", ".git/hooks/pre-commit", "params.yaml", "a/../dvc.yaml"]
)
def test_a_worker_writes_no_file_that_no_stage_declares(path: str) -> None:
    declared = {"runs/environment.json", "runs/code.json"}
    check_files(["runs/code.json"], declared)
    with pytest.raises(ConfigError, match="no stage declares"):
        check_files(["runs/code.json", path], declared)


def test_a_stage_is_given_no_key_to_the_prefect_server() -> None:
    from flows import dvc_process

    variables = dict.fromkeys(dvc_process.ORDERS, "secret") | {"HF_TOKEN": "needed", "PATH": "/bin"}
    dvc_process.without_orders(variables)
    assert variables == {"HF_TOKEN": "needed", "PATH": "/bin"}


@pytest.mark.slow
def test_a_command_that_dvc_runs_does_not_see_it(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages:\n  a:\n    cmd: env > seen.txt\n    outs: [seen.txt]\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    variables = {**os.environ, "PREFECT_API_KEY": "pnu_x", "HF_TOKEN": "kept"}
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "flows.dvc_process", "repro", "--single-item", "a"]
    subprocess.run(command, cwd=tmp_path, env=variables, check=True, capture_output=True)
    seen = (tmp_path / "seen.txt").read_text()
    assert "HF_TOKEN=kept" in seen
    assert "PREFECT_API_KEY" not in seen
