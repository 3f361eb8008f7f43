"""Parameters of one queued run: there while it lasts, gone after it, whatever ended it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.parameters_for_a_run import NOTE, parameters_for_a_run, put_back
from prefloop.config.params import load_params
from prefloop.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def kl(workspace: Path) -> float:
    return float(yaml.safe_load((workspace / "params.yaml").read_text())["ppo"]["kl_coef"])


def test_they_last_as_long_as_the_run_and_comments_stay(workspace):
    before, said = (workspace / "params.yaml").read_text(), []
    with parameters_for_a_run(workspace, {"ppo.kl_coef": 0.123, "sft.learning_rate": 1e-05}, said.append):
        during = (workspace / "params.yaml").read_text()
        assert kl(workspace) == 0.123
        assert load_params(workspace / "params.yaml").sft.learning_rate == 1e-05
        assert during.count("#") == before.count("#")
    assert (workspace / "params.yaml").read_text() == before
    assert not (workspace / NOTE).exists()
    assert said[0].startswith("params.yaml: ppo.kl_coef: ")


def test_a_run_that_fails_puts_them_back(workspace):
    before = (workspace / "params.yaml").read_text()
    with (
        pytest.raises(RuntimeError, match="a stage"),
        parameters_for_a_run(workspace, {"ppo.kl_coef": 0.5}, print),
    ):
        raise RuntimeError("a stage failed")
    assert (workspace / "params.yaml").read_text() == before


def test_after_a_kill_the_next_run_puts_them_back_first(workspace):
    before = (workspace / "params.yaml").read_text()
    program = (
        "import time; from pathlib import Path; from flows.parameters_for_a_run import *\n"
        "with parameters_for_a_run(Path('.'), {'ppo.kl_coef': 0.5}, print):\n"
        "    print('ready', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [sys.executable, "-c", program], cwd=workspace, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    while child.stdout.readline() != "ready\n":
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert kl(workspace) == 0.5
    with parameters_for_a_run(workspace, {}, print):
        assert (workspace / "params.yaml").read_text() == before


def test_what_somebody_wrote_meanwhile_stays_and_what_was_before_is_kept(workspace):
    before, said = (workspace / "params.yaml").read_text(), []
    with parameters_for_a_run(workspace, {"ppo.kl_coef": 0.5}, said.append):
        (workspace / "params.yaml").write_text(before.replace("seed: 0", "seed: 7"))
    assert yaml.safe_load((workspace / "params.yaml").read_text())["seed"] == 7
    (kept,) = (workspace / ".prefloop").glob("params-*.yaml")
    assert kept.read_text() == before
    assert str(kept) in said[-1]
    put_back(workspace, said.append)
    assert len(said) == 2, "it is told once"


def test_a_kill_between_the_note_and_the_file_changes_nothing(workspace, monkeypatch):
    before = (workspace / "params.yaml").read_text()

    def killed(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("flows.parameters_for_a_run._write", killed)
        with pytest.raises(KeyboardInterrupt):
            parameters_for_a_run(workspace, {"ppo.kl_coef": 0.5}, print).__enter__()
    assert (workspace / NOTE).exists()
    put_back(workspace, pytest.fail)
    assert (workspace / "params.yaml").read_text() == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ppo.kl_coeff": 0.1}, "kl_coef"),
        ({"ppo.kl_coef": float("nan")}, "nan"),
        ({"base.model": "/etc"}, "neither a number nor true or false"),
        ({"ingest.text": ["/etc/passwd"]}, "neither a number nor true or false"),
        ({"sft.epochs": None}, "neither a number nor true or false"),
    ],
)
def test_what_does_not_fit_or_could_name_a_file_is_refused(workspace, changes, words):
    before = (workspace / "params.yaml").read_text()
    with pytest.raises(ConfigError, match=words), parameters_for_a_run(workspace, changes, print):
        pytest.fail("it began")
    assert (workspace / "params.yaml").read_text() == before
    assert not (workspace / NOTE).exists()
