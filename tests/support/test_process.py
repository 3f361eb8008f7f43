"""Processes that end with the one they work for; locks that say who holds them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from prefloop.errors import WorkspaceError
from tasks.support.locks import held, holder
from tasks.support.process import ProcessId, end_group, group_members, identify

ROOT = Path(__file__).parents[2]

CHILD = """
import os, time
from tasks.support.process import watch_parent
watch_parent(lambda: os._exit(9))
print("ready", flush=True)
time.sleep(600)
"""

PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from tasks.support.process import lifeline
with lifeline(Path(sys.argv[1]) / "pipe") as variables:
    # A shell stands between, and every descriptor is closed: as under DVC.
    command = ["/bin/sh", "-c", f"{sys.executable} -c \\"$CHILD\\"; exit 0"]
    child = subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True, close_fds=True)
    print(child.pid, flush=True)
    time.sleep(600)
"""


LIKE_DVC = """
import os, subprocess, sys, time
# A shell that stays between DVC and its command, in one session with both.
child = subprocess.Popen(["/bin/sh", "-c", f"{sys.executable} -c \\"$CHILD\\"; exit 0"])
print(child.pid, flush=True)
time.sleep(600)
"""


def start(script: str, *arguments: str, new_session: bool = False, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def gone(group: int, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not group_members(group):
            return True
        time.sleep(0.05)
    return False


def test_a_grandchild_ends_when_the_process_at_the_top_is_killed(tmp_path: Path) -> None:
    parent = start(PARENT, str(tmp_path), CHILD=CHILD)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    assert parent.stdout.readline() == "ready\n"
    assert group_members(group)
    parent.kill()
    parent.wait()
    assert gone(group)
    parent.stdout.close()


@pytest.mark.parametrize("before_it_looks", [False, True])
def test_a_command_ends_with_a_dvc_that_is_killed_behind_a_shell(before_it_looks: bool) -> None:
    late = "time.sleep(2); watch_parent(lambda"
    child = CHILD.replace("watch_parent(lambda", late) if before_it_looks else CHILD
    dvc = start(LIKE_DVC, CHILD=child, DVC_STAGE="sft", new_session=True)
    assert dvc.stdout is not None
    dvc.stdout.readline()
    if not before_it_looks:
        assert dvc.stdout.readline() == "ready\n"
    dvc.kill()
    dvc.wait()
    assert gone(dvc.pid)
    dvc.stdout.close()


def test_a_process_started_by_hand_watches_nobody() -> None:
    child = start(CHILD.replace("time.sleep(600)", "import threading; print(threading.active_count())"))
    output, _ = child.communicate(timeout=60)
    assert output.split() == ["ready", "1"]


def test_a_pid_alone_is_no_identity() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me.alive()
    assert not ProcessId(me.pid, me.started - 1.0).alive()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a start is not worked out from the clock")
def test_a_clock_that_is_set_makes_nobody_a_stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    me = identify(os.getpid())
    assert me is not None
    began = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: began + 3600.0)
    assert psutil.Process().create_time() > time.time(), "the clock was not set"
    assert me.alive()


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    me = identify(child.pid)
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    assert me is None or not me.alive()
    child.wait()


def test_a_group_that_ignores_the_signal_is_killed() -> None:
    script = "import signal,time;signal.signal(15,signal.SIG_IGN);print(1,flush=True);time.sleep(600)"
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    end_group(child.pid, signal.SIGTERM, grace_seconds=0.3)
    assert child.wait(30) == -signal.SIGKILL
    child.stdout.close()


def test_a_lock_names_its_holder_and_is_free_after_a_kill(tmp_path: Path) -> None:
    script = """
import sys, time
from tasks.support.locks import held
with held(sys.argv[1], "stage sft"):
    print("held", flush=True)
    time.sleep(600)
"""
    path = tmp_path / "sft.lock"
    other = start(script, str(path), PREFLOOP_PIPELINE_ID="run-1")
    assert other.stdout is not None
    other.stdout.readline()
    found = holder(path)
    assert found is not None
    assert found.process is not None
    assert (found.process.pid, found.pipeline) == (other.pid, "run-1")
    with pytest.raises(WorkspaceError, match=f"stage sft is in the hands of run-1 .pid {other.pid}"):
        held(path, "stage sft").__enter__()
    other.kill()
    other.wait()
    other.stdout.close()
    assert holder(path) is None
    with held(path, "stage sft"):
        own = holder(path)
        assert own is not None
        assert own.process == identify(os.getpid())
    assert holder(path) is None
