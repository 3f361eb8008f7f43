"""Jobs and results that mean harm: a worker runs stages of its workspace, and no other command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import credentials
from flows.withholding import withhold
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
        remote_stage.fn.__wrapped__(**job(folder, exchange="https://attacker.example/exchange"), lock="")
    assert not (tmp_path / "worker").exists()


@pytest.mark.parametrize(
    "path", ["../../.bashrc", "/etc/cron.d/x", ".git/hooks/pre-commit", "params.yaml", "a/../dvc.yaml"]
)
def test_a_worker_writes_no_file_that_no_stage_declares(path: str) -> None:
    declared = {"runs/environment.json", "runs/code.json"}
    check_files(["runs/code.json"], declared)
    with pytest.raises(ConfigError, match="no stage declares"):
        check_files(["runs/code.json", path], declared)


SECRETS = dict.fromkeys(credentials.ALL, "secret")
OTHERS = {"PATH": "/bin", "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000", "AWS_DEFAULT_REGION": "us-east-1"}
PARAMS = """
ingest: {source: world, hub: {name: a/b}}
base: {model: ""}
reward: {base: sft}
judge: {base: base}
validate: {tokenizer: ""}
compute: {trust_remote_code: false}
"""


def given(
    stage: str, folder: Path, params: str = PARAMS, command: str = "python -m tasks.x", **more: str
) -> set[str]:
    """Names of the credentials that a stage's command gets."""
    (folder / "params.yaml").write_text(params)
    variables = {**SECRETS, **OTHERS, **more}
    withhold(stage, command, variables, folder)
    assert {**OTHERS, **more}.items() <= variables.items()
    return variables.keys() & credentials.ALL


@pytest.fixture
def delivered() -> dict[str, str]:
    """Variables of a stage whose pipeline delivers what it logs."""
    return {"PREFLOOP_PIPELINE_ID": "run-1", "PREFLOOP_DELIVERED_BY": str(os.getpid())}


@pytest.mark.parametrize(
    ("stage", "old", "new"),
    [
        ("ingest", "source: world", "source: hub"),
        ("base", 'model: ""', "model: Qwen/Qwen2.5-0.5B"),
        ("reward", "base: sft", "base: FacebookAI/roberta-base"),
        ("judge", "base: base", "base: gpt2"),
        ("validate@preferences", 'tokenizer: ""', "tokenizer: gpt2"),
        ("sft", "code: false", "code: true"),
    ],
)
def test_the_hubs_token_goes_to_stages_that_load_from_the_hub(
    tmp_path: Path, delivered: dict[str, str], stage: str, old: str, new: str
) -> None:
    assert given(stage, tmp_path, **delivered) == set()
    assert old in PARAMS
    assert given(stage, tmp_path, PARAMS.replace(old, new), **delivered) == set(credentials.HUB)
    if stage != "sft":
        assert given("dpo@dpo", tmp_path, PARAMS.replace(old, new), **delivered) == set()


def test_a_model_in_a_folder_needs_no_token(tmp_path: Path, delivered: dict[str, str]) -> None:
    params = PARAMS.replace('model: ""', f"model: {tmp_path}")
    assert given("base", tmp_path, params, **delivered) == set()


def test_a_stage_that_delivers_itself_keeps_what_the_stores_ask_for(tmp_path: Path) -> None:
    assert given("ppo@ppo", tmp_path) == set(credentials.STORES)
    gone = {"PREFLOOP_PIPELINE_ID": "run-1", "PREFLOOP_DELIVERED_BY": str(2**22 + 1)}
    assert given("ppo@ppo", tmp_path, **gone) == set(credentials.STORES)


def test_a_command_of_the_users_own_keeps_all_but_the_orders(
    tmp_path: Path, delivered: dict[str, str]
) -> None:
    kept = {*credentials.HUB, *credentials.STORES}
    assert given("mine", tmp_path, command="./mine.sh", **delivered) == kept


SEEN = "import json, os\nopen('seen.json', 'w').write(json.dumps(dict(os.environ)))\n"


@pytest.mark.slow
def test_commands_that_dvc_runs_see_what_they_need(tmp_path: Path, delivered: dict[str, str]) -> None:
    repository = Path(__file__).parents[2]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").write_text((repository / "tasks/__init__.py").read_text())
    (tmp_path / "tasks/support").symlink_to(repository / "tasks/support")
    (tmp_path / "tasks/base.py").write_text(SEEN)
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n"
        "  a: {cmd: env > seen.txt, outs: [seen.txt]}\n"
        "  base: {cmd: python -m tasks.base, outs: [seen.json]}\n"
    )
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    variables = {**os.environ, **SECRETS, **delivered, "PYTHONPATH": str(repository)}
    for stage in ("a", "base"):
        command = [sys.executable, "-m", "flows.dvc_process", "repro", "--single-item", stage]
        subprocess.run(command, cwd=tmp_path, env=variables, check=True, capture_output=True)
    own = {line.partition("=")[0] for line in (tmp_path / "seen.txt").read_text().splitlines()}
    assert own & set(credentials.ALL) == {*credentials.HUB, *credentials.STORES}
    ours = json.loads((tmp_path / "seen.json").read_text())
    assert ours["DVC_STAGE"] == "base"
    assert not ours.keys() & set(credentials.ALL)
