"""The leader of one stage's processes: a fork of the warm process with a session of its own.

DVC and the stage are its children, so they share its group, as those of a cold start share one: signals to
the group reach all of them, and the end of the group is the end of all. The stage has no kinship with the
shell that DVC started; when the process in between that stands for the stage is killed, the leader ends it.
"""

from __future__ import annotations

import atexit
import os
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from flows import credentials
from flows.warm_messages import listen, receive, send

Work = Callable[[], Any]

DVC = "flows.dvc_process"
"""Module that is DVC's command line."""
LEADER = "PREFLOOP_LEADER"
"""Environment variable by which `tasks/__init__.py` finds the leader of its stage: the path of a socket."""
UNWRITTEN = 120
"""Python's exit status where what was printed could not be written."""
FREE = ("PWD", "OLDPWD", "SHLVL", "_", *credentials.ALL)
FREE_BEGINNINGS = ("DVC", "PREFECT", "PREFLOOP_")
"""Environment variables, and beginnings of their names, that nothing reads while it is imported."""


def lead(
    asked: Mapping[str, Any], output: int, status: int, address: str, environment: Mapping[str, str]
) -> Work:
    """Starts DVC, and the stage when DVC's command asks for it, and tells DVC's exit status. Another module
    that is asked for in DVC's place starts nothing further.

    Args:
        asked: `module`, `arguments` for it, `environment` and `folder` of its process.
        output: where both print.
        status: receives the leader's pid, and in the end the exit status, a line each.
        address: of the warm process; the leader's begins with it.
        environment: that modules were imported under.

    Returns:
        In each fork, what that fork is to do; the leader itself ends here.
    """
    os.setsid()
    leader = _Leader(status, f"{address}-{os.getpid()}", environment)
    nothing = os.open(os.devnull, os.O_RDWR)
    _become(asked, [nothing, output, output])
    work = leader.run(asked["module"], asked["arguments"])
    if work is None:
        leader.end()
    return work


class _Leader:
    def __init__(self, status: int, address: str, environment: Mapping[str, str]) -> None:
        self._status, self._address = status, address
        self._imported_under = _fixed(environment)
        self._set_by_imports = {k: v for k, v in os.environ.items() if environment.get(k) != v}
        self._listener = listen(address)
        self._alarm = os.pipe()
        for descriptor in self._alarm:
            os.set_blocking(descriptor, False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # for those it leads; it ends when DVC does
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._alarm[1], warn_on_full_buffer=False)
        self._stages: dict[int, socket.socket] = {}  # pid -> who asked for it, and waits

    def run(self, module: str, arguments: Sequence[str]) -> Work | None:
        os.write(self._status, f"{os.getpid()}\n".encode())
        dvc = os.fork()
        if not dvc:
            self._leave()
            if module == DVC:
                os.environ[LEADER] = self._address
            return partial(_module, module, arguments)
        while True:
            askers = [asker.fileno() for asker in self._stages.values()]
            ready = select.select([self._listener.fileno(), self._alarm[0], *askers], [], [])[0]
            if self._alarm[0] in ready:
                os.read(self._alarm[0], 4096)
                for pid, code in ended():
                    if pid == dvc:
                        os.write(self._status, f"{code}\n".encode())
                        return None
                    if asker := self._stages.pop(pid, None):
                        with suppress(OSError), asker:
                            send(asker, {"status": code})
            for pid, asker in list(self._stages.items()):
                if asker.fileno() in ready:  # it never says a second word: it is gone
                    os.kill(pid, signal.SIGTERM)
                    self._stages.pop(pid).close()
            if self._listener.fileno() in ready and (work := self._answer()):
                return work

    def end(self) -> NoReturn:
        """Without what an interpreter does at its end: nothing in it was made here."""
        Path(self._address).unlink(missing_ok=True)
        os._exit(0)

    def _answer(self) -> Work | None:
        """Forks the stage that somebody asks for; the fork gets its work."""
        asker, _ = self._listener.accept()
        asked, descriptors = receive(asker, 3)
        if _fixed(asked["environment"]) != self._imported_under:
            with suppress(OSError), asker:
                send(asker, {"status": None})  # its libraries would behave otherwise: it starts by itself
        else:
            pid = os.fork()
            if not pid:
                self._leave()
                asker.close()
                _become(asked, descriptors)
                os.environ.update(self._set_by_imports)
                return partial(_stage, asked["module"], asked["arguments"])
            self._stages[pid] = asker
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _leave(self) -> None:
        """Makes a fork an ordinary process: signals as Python sets them, nothing of the leader's open."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in (*self._alarm, self._status):
            os.close(descriptor)
        for asker in self._stages.values():
            asker.close()
        self._listener.close()


def ended() -> list[tuple[int, int]]:
    """Pid and exit code (negative: a signal) of every child that ended since the last look."""
    found = []
    with suppress(ChildProcessError):
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            found.append((child[0], os.waitstatus_to_exitcode(child[1])))
    return found


def _fixed(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name not in FREE and not name.startswith(FREE_BEGINNINGS)
    }


def _become(asked: Mapping[str, Any], descriptors: Sequence[int]) -> None:
    """Takes over folder, environment and standard streams of the process that asked."""
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for stream, descriptor in enumerate(descriptors):
        os.dup2(descriptor, stream)
    for descriptor in {*descriptors} - {0, 1, 2}:
        os.close(descriptor)


def _stage(module: str, arguments: Sequence[str]) -> None:
    os.environ.pop(LEADER, None)
    _module(module, arguments)


def _module(module: str, arguments: Sequence[str]) -> NoReturn:
    """As `python -m MODULE`, to the end of the process.

    An interpreter that ends takes apart all that was ever imported: here half a second of copying pages that
    are about to be given back. What is due at an exit is done; the rest is left to the system, as
    multiprocessing leaves it in processes that it forks.
    """
    sys.argv = [module, *arguments]
    code = 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = _status(end.code)
    except KeyboardInterrupt:
        raise  # the interpreter ends by the signal itself, which its parent can tell
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or UNWRITTEN
    os._exit(code)


def _status(code: object) -> int:
    """The exit status that `sys.exit(code)` ends with."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1
