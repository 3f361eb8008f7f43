"""No secret is recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.support.redact import HIDDEN, redact, redact_all


@pytest.mark.parametrize(
    "key",
    [
        "hub.token",
        "api_key",
        "hf_token",
        "AWS_SECRET_ACCESS_KEY",
        "db.password",
        "tracking.auth_token",
        "secret",
    ],
)
def test_values_under_secret_names_are_hidden(key):
    assert redact(key, "value") == HIDDEN


@pytest.mark.parametrize(
    "key", ["ppo.sampling.max_new_tokens", "validate.max_tokens", "tokenizer", "keys", "monkey"]
)
def test_ordinary_names_are_kept(key):
    assert redact(key, 48) == "48"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("https://me:hunter2@host/path", f"https://{HIDDEN}@host/path"),
        ("https://ghp_x@host/r.git", f"https://{HIDDEN}@host/r.git"),
        ("postgresql+psycopg://u:p%40ss@db:5432/mlflow", f"postgresql+psycopg://{HIDDEN}@db:5432/mlflow"),
        ("https://host/f?X-Amz-Signature=abc&x=1", f"https://host/f?X-Amz-Signature={HIDDEN}&x=1"),
        ("loaded with hf_" + "a" * 30, f"loaded with {HIDDEN}"),
        ("s3://bucket/key@v2", "s3://bucket/key@v2"),
        ("https://host/a@b", "https://host/a@b"),
    ],
)
def test_credentials_inside_values(value, shown):
    assert redact("uri", value) == shown


def test_the_folder_of_a_shell_is_no_password(monkeypatch):
    for name in ("PWD", "OLDPWD"):
        monkeypatch.setenv(name, "/home/me/prefloop")
    monkeypatch.setenv("DB_PWD", "hunter2hunter2")
    assert redact("error", "the workspace /home/me/prefloop") == "the workspace /home/me/prefloop"
    assert redact("error", "said hunter2hunter2") == f"said {HIDDEN}"


@given(
    user=st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
    password=st.from_regex(r"[!-.0-?A-~]{6,20}", fullmatch=True),
)
def test_no_password_of_a_uri_survives(user, password):
    shown = redact_all({"uri": f"https://{user}:{password}@server/x"})["uri"]
    assert password not in shown.removeprefix("https://")
