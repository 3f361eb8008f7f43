"""Stages forked from a warm process: they are where a cold start would put them, and end as one would."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows.settings import child_environment
from flows.warm_child import WarmChild, WarmStarts
from tasks.support.process import end_group, group_members, identify, lifeline
from tests.waiting import wait_until

IMPORTED = "colorsys"  # by the warm process, and by nothing else here

PROBE = """
import atexit, json, os, sys, threading, time
from tasks.support.signals import Interrupted, StopFlag
stop = StopFlag()
with stop.installed():
    about = {"warm": "colorsys" in sys.modules, "arguments": sys.argv[1:], "folder": os.getcwd(),
             "stage": os.environ["DVC_STAGE"], "group": os.getpgrp(), "pid": os.getpid(), "name": __name__,
             "leader": "PREFLOOP_LEADER" in os.environ}
    try:
        print(json.dumps(about), flush=True)
        if sys.argv[1] == "fails":
            sys.exit(3)
        if sys.argv[1] == "says":
            sys.exit("what was wrong")
        if sys.argv[1] == "breaks":
            atexit.register(print, "what is due at an exit")
            threading.Thread(target=lambda: (time.sleep(0.3), print("what a thread does"))).start()
            raise LookupError("what nobody expected")
        while sys.argv[1] == "waits":
            time.sleep(0.05)
    except Interrupted:
        print(f"stopped by {stop.number}", flush=True)
        sys.exit(stop.exit_code)
"""
PIPELINE = """
stages:
  ends: {cmd: python -m tasks.probe ends 'a b', always_changed: true}
  fails: {cmd: python -m tasks.probe fails, always_changed: true}
  says: {cmd: python -m tasks.probe says, always_changed: true}
  breaks: {cmd: python -m tasks.probe breaks, always_changed: true}
  waits: {cmd: python -m tasks.probe waits, always_changed: true}
  differs: {cmd: OMP_DYNAMIC=1 python -m tasks.probe ends, always_changed: true}
"""

Start = Callable[[str], WarmChild]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Start]:
    """Starts a stage of a little pipeline through a warm process."""
    root = tmp_path_factory.mktemp("warm")
    (root / "tasks").mkdir()
    (root / "tasks/__init__.py").write_text((repository / "tasks/__init__.py").read_text())
    (root / "tasks/support").symlink_to(repository / "tasks/support")
    (root / "tasks/probe.py").write_text(PROBE)
    (root / "dvc.yaml").write_text(PIPELINE)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=root, check=True)
    with lifeline(root / "lifeline") as variables, tempfile.TemporaryDirectory() as short:
        about = {**child_environment(variables), "PYTHONPATH": str(repository)}
        address = f"{short}/socket"
        command = [sys.executable, "-m", "flows.warm_process", address, "dvc.cli", IMPORTED]
        warm = subprocess.Popen(command, cwd=root, env=about)
        starts = WarmStarts(address)

        def begin(stage: str) -> WarmChild:
            words = [
                sys.executable,
                "-m",
                "flows.dvc_process",
                "--wait-for-lock",
                "repro",
                "--single-item",
                stage,
            ]
            for _ in range(600):  # until it listens
                if child := starts.start(words, root, about):
                    return child
                time.sleep(0.05)
            raise AssertionError("the warm process does not answer")

        for _ in range(20):  # until it has imported what it was told
            child = begin("ends")
            imported = probe_of(child)["warm"]
            ended(child)
            if imported:
                break
        yield begin
        warm.kill()
        warm.wait()


def probe_of(child: WarmChild) -> dict:
    """What the probe says of itself, past DVC's words."""
    return next(json.loads(line) for line in child.stdout if line.startswith("{"))


def ended(child: WarmChild) -> tuple[int, str]:
    output = child.stdout.read()
    code = child.wait()
    wait_until(lambda: not group_members(child.pid))
    return code, output


def test_a_warm_stage_is_what_a_cold_one_would_be(start: Start) -> None:
    child = start("ends")
    probe = probe_of(child)
    assert probe["warm"]
    assert probe["arguments"] == ["ends", "a b"]
    assert (probe["stage"], probe["name"], probe["leader"]) == ("ends", "__main__", False)
    assert Path(probe["folder"], "dvc.yaml").exists()
    assert probe["group"] == child.pid != probe["pid"]
    assert ended(child)[0] == 0


def test_what_its_forks_used_is_counted(start: Start) -> None:
    child = start("ends")
    warm = psutil.Process(child.pid).parent()

    def used() -> float:
        times = warm.cpu_times()
        return times.children_user + times.children_system

    before = used()
    assert ended(child)[0] == 0
    wait_until(lambda: used() > before + 0.1)  # DVC alone takes more
    assert child.pid not in {one.pid for one in warm.children()}


def test_a_failure_is_the_commands(start: Start) -> None:
    child = start("fails")
    assert probe_of(child)["warm"]
    code, output = ended(child)
    assert code != 0
    assert "exited with 3" in output


def test_the_end_of_a_stage_is_that_of_an_interpreter(start: Start) -> None:
    code, output = ended(start("says"))
    assert code != 0
    assert "what was wrong\n" in output
    assert "exited with 1" in output
    code, output = ended(start("breaks"))
    assert code != 0
    for words in ("LookupError: what nobody expected", "what a thread does", "what is due at an exit"):
        assert f"{words}\n" in output
    assert "exited with 1" in output


def test_what_libraries_would_read_otherwise_is_not_forked(start: Start) -> None:
    child = start("differs")
    assert not probe_of(child)["warm"]
    assert ended(child)[0] == 0


def test_a_signal_to_the_group_reaches_the_stage(start: Start) -> None:
    child = start("waits")
    probe_of(child)
    os.killpg(child.pid, signal.SIGINT)
    code, output = ended(child)
    assert code != 0
    assert f"stopped by {signal.SIGINT}" in output
    assert re.search(r"exited with (130|-2)\b", output)  # the shell waits for its command, or becomes it


@pytest.mark.parametrize("victim", ["leader", "stand-in", "stage"])
def test_kill_9_of_one_ends_all(start: Start, victim: str) -> None:
    child = start("waits")
    probe = probe_of(child)
    leader = psutil.Process(child.pid)
    stand_in = next(p for p in leader.children(recursive=True) if "tasks.probe" in p.cmdline())
    os.kill({"leader": child.pid, "stand-in": stand_in.pid, "stage": probe["pid"]}[victim], signal.SIGKILL)
    code, output = ended(child)
    assert code != 0
    assert victim != "stage" or re.search(r"exited with (137|-9)\b", output)
    assert identify(probe["pid"]) is None


def test_the_end_of_a_group_is_the_end_of_all_in_it(start: Start) -> None:
    child = start("waits")
    probe = probe_of(child)
    end_group(child.pid, signal.SIGTERM, 30.0)
    assert child.wait() != 0
    assert identify(probe["pid"]) is None
