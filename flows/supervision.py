"""Child processes of a run: started in sessions of their own, ended with it, known to the next run."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from flows.leftovers import end_leftovers
from flows.settings import STATE, child_environment
from flows.warm_child import WarmChild, WarmStarts
from flows.workspace_lock import hold_workspace
from prefloop.files import write_json
from tasks.support.process import end_group, identify, lifeline, watch_parent

GRACE_SECONDS = 30.0
"""How long a stage may take to save a checkpoint when it is asked to end."""


class Stopped(Exception):
    """The run was asked to end; no further child is started."""


Child = subprocess.Popen[str] | WarmChild


class Supervisor:
    """Starts and ends the children of one run. Open it with `supervise`.

    Attributes:
        pipeline: id of the run; children find it in PREFLOOP_PIPELINE_ID.
        variables: what every child finds in its environment besides.
        signal_number: the signal that asked the run to end, None while nothing did.
        warm: starts stages that find their imports done; None while all start cold.
        say: tells people a line.
    """

    def __init__(
        self, root: Path, pipeline: str, lifeline_variables: Mapping[str, str], say: Callable[[str], None]
    ) -> None:
        self.root = root
        self.pipeline = pipeline
        self.signal_number: int | None = None
        self.warm: WarmStarts | None = None
        self.variables = {**lifeline_variables, "PREFLOOP_PIPELINE_ID": pipeline}
        self._records = root / STATE / "children"
        self._children: dict[int, str] = {}
        self._services: set[int] = set()
        self._lock = threading.Lock()
        self.say = say

    def start(
        self,
        command: Sequence[str],
        what: str,
        *,
        output: int | None = subprocess.PIPE,
        folder: Path | None = None,
        extra: Mapping[str, str] | None = None,
        service: bool = False,
        pass_fds: Sequence[int] = (),
        without: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Starts a child in a session of its own and records it by pid and start time.

        Args:
            output: where its output goes; a pipe by default.
            folder: where it works; the workspace by default.
            extra: further environment variables.
            service: others need it to end well, so a run that is asked to end lets it live until they have.
            pass_fds: open files that it gets beside the usual three.
            without: environment variables that it does not get.

        Raises:
            Stopped: the run was asked to end.
        """
        with self._lock:
            if self.signal_number is not None:
                raise Stopped(what)
            child = subprocess.Popen(
                list(command),
                cwd=folder or self.root,
                env=self._environment(extra, without),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                pass_fds=pass_fds,
            )
            self._children[child.pid] = what
            if service:
                self._services.add(child.pid)
        self._note(child.pid, what, service=service)
        return child

    def _start_warm(
        self,
        command: Sequence[str],
        what: str,
        folder: Path | None,
        extra: Mapping[str, str] | None,
        without: Sequence[str],
    ) -> WarmChild | None:
        if self.warm is None or self.signal_number is not None:
            return None
        child = self.warm.start(command, folder or self.root, self._environment(extra, without))
        if child is not None:
            with self._lock:
                self._children[child.pid] = what
            self._note(child.pid, what)
        return child

    def _environment(self, extra: Mapping[str, str] | None, without: Sequence[str] = ()) -> dict[str, str]:
        every = child_environment({**self.variables, **(extra or {})})
        return {name: value for name, value in every.items() if name not in without}

    def run(
        self,
        command: Sequence[str],
        what: str,
        on_line: Callable[[str], None],
        *,
        folder: Path | None = None,
        extra: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
    ) -> int:
        """Runs a child to its end, handing over each line it prints; returns its exit status.

        Raises:
            Stopped: the run was asked to end, before or meanwhile.
        """
        child: Child = self._start_warm(command, what, folder, extra, without) or self.start(
            command, what, folder=folder, extra=extra, without=without
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                on_line(line.rstrip("\n"))
            status = child.wait()
        finally:
            self.finish(child)
        if self.signal_number is not None:
            raise Stopped(what)
        return status

    def finish(self, child: Child) -> None:
        """Ends what is left of a child's group and forgets it."""
        end_group(child.pid, signal.SIGTERM, GRACE_SECONDS)
        child.wait()
        with self._lock:
            self._children.pop(child.pid, None)
            self._services.discard(child.pid)
        (self._records / f"{child.pid}.json").unlink(missing_ok=True)

    def request_stop(self, number: int) -> None:
        """Asks every child to end: softly at first (a trainer saves a checkpoint), then for good."""
        again = self.signal_number is not None
        self.signal_number = self.signal_number or number
        self.say("ending at once" if again else "stopping after this step; once more ends at once")
        for pid in set(self._children) - (set() if again else self._services):
            try:
                # DVC waits for its command on SIGINT, and dies on SIGTERM leaving its own locks behind.
                os.killpg(pid, signal.SIGKILL if again else signal.SIGINT)
            except (ProcessLookupError, PermissionError):
                continue

    def end_all(self) -> None:
        """Ends every child that still lives."""
        for pid in list(self._children):
            end_group(pid, signal.SIGINT, GRACE_SECONDS)
            (self._records / f"{pid}.json").unlink(missing_ok=True)

    def _note(self, pid: int, what: str, *, service: bool = False) -> None:
        """Records a child that is in the list, and asks it to end if the run was asked in between."""
        if not service and self.signal_number is not None:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGINT)
        process = identify(pid)
        if process is not None:
            write_json(
                self._records / f"{pid}.json",
                {"pid": pid, "started": process.started, "what": what, "pipeline": self.pipeline},
            )


@contextmanager
def supervise(root: Path, pipeline: str, say: Callable[[str], None]) -> Iterator[Supervisor]:
    """Takes the workspace for one run: its lock, the leftovers of an earlier run, the handling of signals.

    SIGINT and SIGTERM ask the children to end and are remembered; the block goes on and ends by itself.

    Raises:
        WorkspaceError: another run is live in this workspace.
    """
    with ExitStack() as stack:
        stack.enter_context(hold_workspace(root, pipeline))
        end_leftovers(root)
        variables = stack.enter_context(lifeline(root / STATE / "lifeline"))
        supervisor = Supervisor(root, pipeline, variables, say)
        # A run of several seeds has a run as parent, one for changed data a watch.
        watch_parent(lambda: supervisor.request_stop(signal.SIGTERM), death_signal=False)
        stack.callback(supervisor.end_all)
        stack.enter_context(_signals(supervisor))
        yield supervisor


@contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    """Leads SIGINT and SIGTERM to the supervisor for the length of the block; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda received, _frame: supervisor.request_stop(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
