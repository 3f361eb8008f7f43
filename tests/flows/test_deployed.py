"""What a deployment's flow does around its run: it finds its workspace, waits, and ends softly."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows import deployed
from flows.deployed import ended_softly, run_environment, wait_until_free, workspace
from flows.workspace_lock import hold_workspace
from prefloop.errors import ConfigError, WorkspaceError

LOCK = Path(".prefloop/locks/workspace.lock")


def test_a_worker_without_a_workspace_says_how_to_start_it(monkeypatch, tmp_path):
    monkeypatch.delenv("PREFLOOP_WORKSPACE", raising=False)
    with pytest.raises(ConfigError, match="PREFLOOP_WORKSPACE is not set"):
        workspace()
    monkeypatch.setenv("PREFLOOP_WORKSPACE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"where no dvc\.yaml is"):
        workspace()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    assert workspace() == tmp_path


def test_a_run_waits_for_one_from_a_terminal_and_says_so_once(tmp_path):
    said: list[str] = []
    held_long_enough = threading.Event()

    def other() -> None:
        with hold_workspace(tmp_path, "run-7"):
            held_long_enough.wait(30)

    thread = threading.Thread(target=other)
    thread.start()
    while not (tmp_path / LOCK).exists() or not (tmp_path / LOCK).read_text():
        time.sleep(0.01)
    with pytest.raises(WorkspaceError, match="is still live"):
        wait_until_free(tmp_path, 0.05, said.append, poll=0.01)
    assert said == [f"run-7 is live in {tmp_path} (pid {os.getpid()}): waiting until it ends"]
    threading.Timer(0.2, held_long_enough.set).start()
    wait_until_free(tmp_path, 30, said.append, poll=0.01)
    thread.join()
    assert held_long_enough.is_set()


def answers(monkeypatch, *codes: int) -> list[int]:
    """Has runs end with these exit codes, one after the other; returns those that are left."""
    left = list(codes)
    monkeypatch.setattr(deployed, "_to_its_end", lambda *_: (left.pop(0), [], {}))
    return left


def test_who_was_quicker_by_a_moment_is_waited_for(monkeypatch, tmp_path):
    left = answers(monkeypatch, 6, 0)
    assert deployed._when_free(tmp_path, (), {}, 30.0, print)[0] == 0
    assert left == []
    left = answers(monkeypatch, 6, 6, 0)  # it is not the lock: tried again once, no more
    assert deployed._when_free(tmp_path, (), {}, 30.0, print)[0] == 6
    assert left == [0]
    left = answers(monkeypatch, 5, 0)
    assert deployed._when_free(tmp_path, (), {}, 30.0, print)[0] == 5
    assert left == [0]


def test_what_cannot_be_is_a_failed_state_with_what_to_do_not_a_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(deployed, "get_run_logger", logging.getLogger)
    monkeypatch.setenv("PREFLOOP_WORKSPACE", str(tmp_path))
    for state, words in (
        (deployed._run((), "", 2, 1.0, {}, force=False), "where no dvc.yaml is"),
        (_changed(tmp_path, {"ppo.kl_cof": 0.1}), "did you mean ppo.kl_coef?"),
    ):
        assert state.is_failed()
        assert state.message.startswith("exit code 2\n")
        assert words in state.message


def _changed(root: Path, changes: dict[str, float]):
    (root / "dvc.yaml").touch()
    (root / "params.yaml").write_text("ppo: {kl_coef: 0.05}\n")
    return deployed._run((), "", 2, 1.0, changes, force=False)


def test_a_run_is_no_part_of_the_flow_run_that_started_it(monkeypatch):
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "a flow run")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    found = run_environment({"PREFLOOP_PARENT_PIPE": "/pipe"})
    assert "PREFECT__FLOW_RUN_ID" not in found
    assert found["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert found["PREFLOOP_PARENT_PIPE"] == "/pipe"


def test_a_flow_that_is_cancelled_asks_its_run_to_stop_and_lets_it_end():
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(143)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(KeyboardInterrupt), ended_softly(child):
        raise KeyboardInterrupt
    assert child.returncode == 143
