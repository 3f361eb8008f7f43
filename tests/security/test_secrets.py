"""Secrets that try to get into what is recorded: MLflow, logs, crash files, the terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.support.ending import ended_well
from tasks.support.redact import HIDDEN, redact, redact_all
from tasks.support.signals import StopFlag
from tasks.support.tracking import RunTracker

SECRET = "Tr0ub4dor&3x"


@pytest.mark.parametrize(
    "key",
    [
        "DB_PASSWD", "db.pwd", "smtp_pass", "passphrase", "AWS_SESSION_TOKEN", "client_secret",
        "Authorization",
        "cookie", "AZURE_STORAGE_CONNECTION_STRING", "account_key", "PREFECT_API_AUTH_STRING", "x-api-key",
        "refresh_token", "private-key", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY",
    ],
)  # fmt: skip
def test_values_under_more_names_of_secrets(key: str) -> None:
    assert redact(key, SECRET) == HIDDEN


@pytest.mark.parametrize(
    "key",
    [
        "ppo.sampling.max_new_tokens",
        "report.passed",
        "sft.bypass",
        "author",
        "compass",
        "data.key",
    ],
)
def test_names_that_only_look_like_it(key: str) -> None:
    assert redact(key, "48") == "48"


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://user:{SECRET}/a@b@db:5432/mlflow",
        f"postgresql://user:{SECRET}@host/db",
        f"connecting to http://u:{SECRET}@h/x failed, then to http://h/y",
        f"host=db user=me password={SECRET} dbname=x",
        f"{{'password': '{SECRET}', 'a': 1}}",
        f'{{"api_key": "{SECRET}"}}',
        f"Authorization: Bearer {SECRET.replace('&', '.')}",
        f"https://account.blob/x?sv=1;AccountKey={SECRET}",
        f"https://h/x?X-Amz-Credential={SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
    ],
)
def test_secrets_inside_a_text(text: str) -> None:
    shown = redact("error", text)
    assert SECRET not in shown
    assert SECRET.replace("&", ".") not in shown
    assert HIDDEN in shown


@pytest.mark.parametrize(
    "token",
    [
        "github_pat_" + "a1" * 20, "glpat-" + "a1" * 12, "xoxb-" + "12" * 12, "AIza" + "a" * 35,
        "sk_live_" + "a1" * 12,
        "ASIA" + "A" * 16, "npm_" + "a" * 36, "pypi-" + "A" * 40, "pnu_" + "a" * 36,
    ],
)  # fmt: skip
def test_tokens_by_their_shape(token: str) -> None:
    assert redact("note", f"used {token} here") == f"used {HIDDEN} here"


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/a@b", "https://host/a@b", "s3://bucket/key@v2", "file:///home/me/x@1",
        "a password is needed",
        "sft  step 3/8  loss 0.25", "tokens: 48", "models/base at main", "token count = 5", "keyboard: yes",
    ],
)  # fmt: skip
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    assert redact("line", text) == text


def test_the_values_of_this_processs_own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("SMALL_TOKEN", "main")
    assert redact("error", f"401 for {SECRET}") == f"401 for {HIDDEN}"
    assert redact("branch", "main") == "main", "too short to be told from a word"


def test_a_crash_file_and_the_terminal_hold_no_secret(
    stage_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    with pytest.raises(SystemExit), ended_well("sft", StopFlag()):
        raise KeyError(f"no answer from https://u:pass-{SECRET}@host, \x1b]0;title\x07 password={SECRET}")
    (crash,) = (stage_folder / ".prefloop/crashes").iterdir()
    shown = capsys.readouterr().err
    assert HIDDEN in crash.read_text()
    assert "KeyError" in shown
    for text in (crash.read_text(), shown):
        assert SECRET not in text
    assert "\x1b" not in shown


def test_what_waits_for_mlflow_holds_no_secret(stage_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFLOOP_TRACKING", raising=False)
    tracker = RunTracker("sft")
    tracker.start(params={"hub.token": SECRET, "tracking.uri": f"http://u:{SECRET}@h/"}, tags={"note": "x"})
    tracker.tags({"prefloop.error": f"DataError: password={SECRET}"})
    tracker.end("FAILED")
    (spool,) = (stage_folder / ".prefloop/spool").glob("*.jsonl")
    assert SECRET not in spool.read_text()
    assert json.loads(spool.read_text().splitlines()[0])["kind"] == "start"


def test_redact_all_goes_by_each_key() -> None:
    assert redact_all({"token": "a", "x": "b"}) == {"token": HIDDEN, "x": "b"}
