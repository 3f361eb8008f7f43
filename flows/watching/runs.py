"""The runs of a watch, one at a time: which data needs one, and what the end of one means for the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flows.watching.child import Child
from flows.watching.memory import Memory
from flows.watching.options import Options
from flows.watching.standby import Standby
from flows.watching.voice import Voice
from flows.watching.work import Work, find_work
from prefloop.errors import WorkspaceError
from prefloop.files import sha256_file

BUSY: Final = WorkspaceError.exit_code
STOPPED: Final = (128 + signal.SIGINT, 128 + signal.SIGTERM)


class Runs:
    """The run under way, and what the memory says of those before it.

    Args:
        variables: by which a run notices that the watch is gone.

    Attributes:
        owed: a run is due although the data stands as it was.
        exit_code: of the last run; 0 before the first.
        began: hash of the data that the run under way, or the last one, began with.
    """

    def __init__(
        self, root: Path, options: Options, voice: Voice, memory: Memory, variables: Mapping[str, str]
    ) -> None:
        self._root, self._options, self._voice = root, options, voice
        self._memory, self._variables = memory, variables
        self._standby = Standby(root, variables)
        self.owed = False
        self.exit_code = 0
        self.began = ""
        self._began_params = ""
        self._child: Child | None = None
        self._preparing = self._tried_again = False
        self._signal: int | None = None

    @property
    def live(self) -> bool:
        """True while a run is under way."""
        return self._child is not None

    @property
    def may_yield(self) -> bool:
        """True while a run is under way that nobody asked to end."""
        return self._child is not None and not self._child.asked

    def prepare(self) -> None:
        """Sees to it that the next run begins soon; call it while none is under way and more may come."""
        if self._options.planned and not self._options.once:
            self._standby.keep()

    def decide(self, data: str, *, touched: bool) -> None:
        """Starts a run where the data needs one; where it needs none, says so.

        Args:
            data: hash of the data.
            touched: files changed, and nothing was imported: somebody may wait for a word.
        """
        failed, params = self._memory.failed, self._params()
        if data == self._memory.data and not failed and not self.owed:
            if touched:
                self._voice.say("unchanged", "the data is what the last run began with: nothing to do")
            self._memory.under_run = False
            return
        work = self._work()
        if not work.needed and not (self._memory.under_run and work.fresh):
            self._memory.data, self._memory.failed, self._memory.under_run = data, {}, False
            self.owed = False
            self._voice.say("up-to-date", "every stage is up to date with the data: nothing to do")
        elif failed.get("data") == data and failed.get("params") == params and not self.owed:
            self.exit_code = int(failed["exit_code"])
            self._voice.say_once(
                "failed-before",
                f"the last run failed on this data with exit code {self.exit_code}: "
                "tried again when data or parameters change",
            )
        elif self._memory.under_run and data != self._memory.data and work.fresh:
            # DVC hashes what a stage read after the stage ended: one that read older data counts as fresh.
            self._start(data, params, (*work.fresh, "--force"), preparing=True)
        else:
            self._memory.under_run = False
            self._start(data, params, self._options.arguments, preparing=False)

    def ended(self, *, dirty: bool) -> bool:
        """Takes note of the end of the run under way, if it ended.

        Args:
            dirty: data/sources/ changed since it began.
        """
        status = self._child.status() if self._child is not None else None
        if self._child is None or status is None:
            return False
        child, self._child = self._child, None
        if status == 0 and self._preparing:
            self.owed, self._memory.under_run = True, dirty
        elif status == 0:
            self._memory.data, self._memory.failed, self.exit_code = self.began, {}, 0
            self._voice.say("done", "the run ended well", exit_code=0)
        elif (child.superseded or self._signal is not None) and status in STOPPED:
            self.owed = True
        elif status == BUSY and not self._tried_again:
            self.owed = self._tried_again = True  # another run may have been quicker by a moment
            return True
        else:
            self.exit_code = status
            self._memory.failed = {"data": self.began, "params": self._began_params, "exit_code": status}
            self._voice.say(
                "failed",
                f"the run ended with exit code {status}: tried again when data or parameters change",
                exit_code=status,
            )
        self._tried_again = False
        return True

    @property
    def outdated(self) -> bool:
        """True after a run that failed on parameters that were changed meanwhile."""
        return bool(self._memory.failed) and self._memory.failed.get("params") != self._params()

    def supersede(self) -> None:
        """Asks the run under way to end, for newer data."""
        if self._child is not None:
            self._voice.say("supersede", f"newer data arrived: asking the run to end (pid {self._child.pid})")
            self._child.supersede()

    def stop(self, number: int) -> None:
        """Passes on a signal that is to end the watch, once; a second one in any case. No run starts then."""
        again = self._signal is not None
        self._signal = self._signal or number
        if self._child is not None:
            if again or not self._child.asked:  # a second signal ends a run at once
                self._child.send(number)
        elif again:
            os._exit(128 + number)  # what is half done is done anew next time

    def end(self) -> None:
        """Asks a run that nobody asked yet: it was being started when the signal came. No other follows."""
        if self._child is not None and not self._child.asked:
            self._child.send(self._signal or signal.SIGTERM)
        self._standby.end()

    def _work(self) -> Work:
        if not self._options.planned:
            return Work(needed=True)  # the run itself ends before Prefect starts where there is none
        return find_work(self._root)

    def _start(self, data: str, params: str, arguments: tuple[str, ...], *, preparing: bool) -> None:
        if self._signal is not None:
            return
        self.began, self._began_params, self._preparing, self.owed = data, params, preparing, False
        command = [*self._options.command, *arguments]
        variables = {**self._variables, **self._standby.variables()}
        self._child = Child(self._root, command, variables, quiet=self._voice.as_json)
        self._voice.say(
            "run", f"data changed: running (pid {self._child.pid})", pid=self._child.pid, data=data
        )

    def _params(self) -> str:
        path = self._root / "params.yaml"
        return sha256_file(path) if path.exists() else ""
