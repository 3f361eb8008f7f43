"""The watch itself: looks, waits for changes to come to rest, takes deliveries, starts one run at a time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from flows import settings
from flows.planning.planner import open_repo
from flows.settings import STATE
from flows.watching.bucket import Bucket
from flows.watching.bucket_feed import BucketFeed
from flows.watching.debounce import Debounce
from flows.watching.files import Hashes, signature
from flows.watching.incoming import Incoming
from flows.watching.memory import Memory
from flows.watching.options import Options
from flows.watching.runs import BUSY, Runs
from flows.watching.sources import Sources
from flows.watching.voice import Voice
from flows.workspace_lock import hold_workspace, live_run
from prefloop.errors import PrefloopError, WorkspaceError
from tasks.support.locks import held
from tasks.support.process import lifeline, watch_parent

RETRY_SECONDS: Final = 30.0


def watch(root: Path, options: Options, voice: Voice) -> int:
    """Watches until a signal comes; with `once`, until everything there is dealt with.

    Returns:
        130 or 143 after a signal; with `once` that of the run, and 6 when something has to be tried again.

    Raises:
        WorkspaceError: another watch is live in this workspace.
        ConfigError: no DVC repository, or a bucket that cannot be read.
    """
    settings.apply(root)
    open_repo(root)
    bucket = Bucket(options.bucket) if options.bucket else None
    with (
        held(root / STATE / "watch.lock", f"watching the workspace {root.absolute()}"),
        lifeline(root / STATE / "watch.lifeline") as variables,
    ):
        watcher = Watch(root, options, voice, bucket, variables)
        watch_parent(lambda: watcher.stop(signal.SIGTERM), death_signal=False)
        with _signals(watcher.stop):
            return watcher.run()


class Watch:
    """One watch. Open it with `watch`."""

    def __init__(
        self, root: Path, options: Options, voice: Voice, bucket: Bucket | None, variables: Mapping[str, str]
    ) -> None:
        self._root, self._options, self._voice = root, options, voice
        self._memory = Memory.load(root)
        self._hashes = Hashes(self._memory.hashes)
        self._sources = Sources(root, self._hashes)
        self._incoming = Incoming(root, root / options.incoming, options.default, voice)
        self._bucket = (
            BucketFeed(bucket, root, options.incoming, options.bucket_interval, self._memory, voice)
            if bucket
            else None
        )
        self._runs = Runs(root, options, voice, self._memory, variables)
        self._debounce = Debounce(options.quiet, options.most)
        self._looked = self._started = time.monotonic()
        self._seen_sources = self._sources.look()
        self._seen_params = signature(root / "params.yaml")
        self._dirty = True  # data/sources may not be what the last run began with
        self._retry_at = 0.0
        self._weighed: object = None
        self._signal: int | None = None
        self._wake = threading.Event()

    def run(self) -> int:
        """Looks and acts until asked to end; returns the exit code."""
        self._voice.say("watching", f"watching data/sources, {self._options.incoming}{self._on_bucket()}")
        while self._signal is None:
            self._tick()
            if self._options.once and self._finished(time.monotonic()):
                break
            self._wake.wait(self._options.interval)
        return self._end()

    def stop(self, number: int) -> None:
        """Asks the watch, and the run under way, to end; once more ends at once."""
        self._signal = self._signal or number
        self._runs.stop(number)
        self._wake.set()

    def _tick(self) -> None:
        earliest, self._looked = self._looked, time.monotonic()
        now = self._looked
        if self._look(now):
            self._debounce.notice(earliest, now)
            self._retry_at = 0.0
        if self._runs.live:
            self._attend(now)
        if not self._runs.live and now >= self._retry_at and self._wants(now) and self._debounce.due(now):
            self._act(now)
        if not self._runs.live and not self._wants(now):
            self._runs.prepare()

    def _look(self, now: float) -> bool:
        changed = False
        sources, params = self._sources.look(), signature(self._root / "params.yaml")
        if sources != self._seen_sources:
            self._seen_sources, self._dirty, changed = sources, True, True
            if self._runs.live or live_run(self._root) is not None:
                self._memory.under_run = True
                self._remember()
        if params != self._seen_params:
            self._seen_params = params
            if self._memory.failed:
                self._dirty = changed = True
        if self._bucket is not None:
            self._bucket.look(now)
        return self._incoming.look(now) or changed

    def _wants(self, now: float) -> bool:
        return self._dirty or self._runs.owed or bool(self._incoming.whole(now))

    def _act(self, now: float) -> None:
        """Takes what was delivered, and starts a run where the data became another."""
        self._debounce.clear()
        other = live_run(self._root)
        if other is not None:
            self._voice.say_once(
                "waiting",
                f"another run has the workspace (pid {other[0]}): waiting until it ends",
                pid=other[0],
            )
            return
        self._voice.forget("waiting")
        touched = self._dirty
        try:
            self._fetch_pointers()
            whole = self._incoming.whole(now)
            if whole:
                with hold_workspace(self._root, "prefloop watch"):
                    self._incoming.take(whole)
            self._seen_sources, self._dirty = self._sources.look(), False
            self._memory.pointers = self._sources.pointers()
            self._runs.decide(self._sources.content(), touched=touched and not whole)
            self._remember()
            self._voice.forget("trouble")
        except (PrefloopError, OSError) as error:
            if live_run(self._root) is not None:  # quicker by a moment: waited for at the next look
                self._dirty = True
                return
            self._dirty, self._retry_at = True, now + RETRY_SECONDS
            self._voice.say_once(
                "trouble", f"{error}\n  tried again in {RETRY_SECONDS:.0f} s, or on a change"
            )

    def _fetch_pointers(self) -> None:
        if self._sources.behind(self._memory.pointers):
            for name in self._sources.fetch():
                self._voice.say("pulled", f"the data of {name} is here now", pointer=name)

    def _attend(self, now: float) -> None:
        if self._runs.ended(dirty=self._dirty):
            self._dirty = self._dirty or self._runs.outdated
            self._remember()
        elif self._options.supersede and self._runs.may_yield and self._newer(now):
            self._runs.supersede()

    def _newer(self, now: float) -> bool:
        """True when data came to rest that the run under way does not have."""
        whole = self._incoming.whole(now)
        pending = whole, self._incoming.waiting(), self._seen_sources
        if pending == self._weighed or not (whole or self._dirty) or not self._debounce.due(now):
            return False
        self._weighed = pending
        try:
            return (self._dirty and self._sources.content() != self._runs.began) or bool(
                self._incoming.new(whole)
            )
        except (PrefloopError, OSError):
            return False

    def _remember(self) -> None:
        self._memory.hashes = self._hashes.as_values()
        try:
            self._memory.save(self._root)
        except WorkspaceError as error:  # a restart will look at more than it had to, and that is all
            self._voice.say_once("memory", str(error))

    def _finished(self, now: float) -> bool:
        """With `once`: nothing is under way, and nothing there can be dealt with now."""
        if self._runs.live:
            return False
        if self._retry_at > now:
            self._runs.exit_code = BUSY
            return True
        if self._wants(now):
            return False
        left = self._incoming.waiting()
        if left and now - self._started < self._options.most:
            return False
        if left:
            self._voice.say("left", f"still being written, left for the next time: {', '.join(left)}")
        return True

    def _end(self) -> int:
        self._runs.end()
        while self._runs.live:
            self._attend(time.monotonic())
            time.sleep(0.1)
        if self._signal is None:
            return self._runs.exit_code
        self._voice.say("stopped", "stopped; start it again to go on")
        return 128 + self._signal

    def _on_bucket(self) -> str:
        return f" and {self._bucket.url}" if self._bucket is not None else ""


@contextmanager
def _signals(stop: Callable[[int], None]) -> Iterator[None]:
    """Leads SIGINT and SIGTERM to the watch for the length of the block; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda received, _frame: stop(received)) for number in numbers}
    # A writer that opens a file while is_being_written asks for it sends this, which would end the process.
    before[signal.SIGIO] = signal.signal(signal.SIGIO, lambda _received, _frame: None)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
