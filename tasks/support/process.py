"""Processes that end with the one they work for, and are known for sure: by pid and start time.

Three ways lead a stage to its end when the process it works for is gone, each for a case that the others
miss: a named pipe whose end of file says that the pipeline died (DVC closes inherited descriptors, a name
passes), Linux's parent-death signal, and a look at the parents: DVC starts a command through a shell, and
some shells stay between the two.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PARENT_PIPE = "PREFLOOP_PARENT_PIPE"
DVC_STAGE = "DVC_STAGE"
POLL_SECONDS = 0.5
SHELLS = ("sh", "ash", "bash", "dash", "fish", "ksh", "zsh")
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same pid.

    Attributes:
        started: when it began (seconds, two decimals): since the machine's start where /proc tells, so that a
            clock which is set meanwhile makes nobody a stranger; elsewhere since the epoch.
    """

    pid: int
    started: float

    def alive(self) -> bool:
        """True while this very process runs; a zombie does not."""
        return identify(self.pid) == self


def identify(pid: int) -> ProcessId | None:
    """The running process with this pid; None where there is none, or only a zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        began = _since_start(pid)
        return ProcessId(pid, round(process.create_time() if began is None else began, 2))
    except psutil.Error:
        return None


def _since_start(pid: int) -> float | None:
    """When a process began, counted from the machine's start; None where there is no /proc.

    psutil's time is this one and the hour of the machine's start, which the kernel works out anew, by
    difference, whenever it is asked: it jumps with the clock.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        ticks = int(text.rpartition(")")[2].split()[19])  # the name, in brackets, may hold anything
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def end_group(leader: int, number: int, grace_seconds: float) -> None:
    """Signals every process of a group, and kills what is left of it after the grace.

    Args:
        leader: pid of the group's leader, which need not live any more.
        number: first signal, such as SIGTERM.
    """
    for attempt, wait in ((number, grace_seconds), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(leader, attempt)
        except (ProcessLookupError, PermissionError):
            return
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            if not group_members(leader):
                return
            time.sleep(0.05)


def group_members(leader: int) -> list[int]:
    """Pids of the living processes of a group, zombies left out."""
    members = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    return members


@contextmanager
def lifeline(path: Path) -> Iterator[dict[str, str]]:
    """Holds a named pipe open for the length of the block; yields the variables with which children watch it.

    The kernel closes it with this process, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    descriptor = os.open(
        path, os.O_RDWR
    )  # not inherited by children; read and write, so as not to wait for a reader
    try:
        yield {PARENT_PIPE: str(path.absolute())}
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def watch_parent(on_death: Callable[[], None], *, death_signal: bool = True) -> None:
    """Calls `on_death` once, from a daemon thread, when the process that this one works for is gone.

    Started by hand (by neither a pipeline nor DVC), a process watches nobody: it may outlive its shell.

    Args:
        death_signal: on Linux, SIGTERM comes as well. Not for a process to which a second request means more
            than the first: the death of its parent would count as two.
    """
    pipe = os.environ.get(PARENT_PIPE, "")
    if not pipe and DVC_STAGE not in os.environ:
        return
    parent, employer = os.getppid(), _employer()
    if death_signal:
        _ask_for_death_signal()
    threading.Thread(
        target=_wait, args=(pipe, parent, employer, on_death), name="parent-watch", daemon=True
    ).start()


def _employer() -> ProcessId | None:
    """The nearest ancestor that is no shell; None where there is none (init took over its shell)."""
    with suppress(psutil.Error):
        for ancestor in psutil.Process().parents():
            if ancestor.name().lstrip("-") not in SHELLS:
                return identify(ancestor.pid)
    return None


def _session(pid: int) -> int | None:
    """Session of a process; DVC shares its own with its commands."""
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _wait(pipe: str, parent: int, employer: ProcessId | None, on_death: Callable[[], None]) -> None:
    try:
        descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK) if pipe else -1
    except OSError:
        on_death()  # the pipe was removed: its owner ended before this process could look
        return
    if employer is None or (DVC_STAGE in os.environ and _session(employer.pid) != os.getsid(0)):
        on_death()  # DVC was gone before this process could look, and somebody else inherited it
        return
    while os.getppid() == parent and employer.alive():
        if descriptor >= 0:
            if _ended(descriptor):
                break
        else:
            time.sleep(POLL_SECONDS)
    on_death()


def _ended(descriptor: int) -> bool:
    """Waits up to the poll time; True when no writer holds the pipe any more."""
    select.select([descriptor], [], [], POLL_SECONDS)
    try:
        return os.read(descriptor, 4096) == b""
    except BlockingIOError:
        return False


def _ask_for_death_signal() -> None:
    """On Linux, SIGTERM when the parent dies; elsewhere the thread's polling has to do."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
