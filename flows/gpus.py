"""GPUs for one stage alone: chosen among those of the machine, and held by a lock of the kernel's.

Whoever runs stages on a machine, several workspaces or workers at once too, takes their GPUs here. A lock
goes with the process that holds it, however that ends, so nothing has to be cleaned up.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from flows.room import VISIBLE, installed_gpus
from flows.supervision import Stopped
from prefloop.errors import WorkspaceError

POLL_SECONDS = 0.5


def lock_folder() -> Path:
    """Where the locks of this user's GPUs lie on this machine.

    Raises:
        WorkspaceError: a folder of that name belongs to somebody else.
    """
    folder = Path(tempfile.gettempdir()) / f"prefloop-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise WorkspaceError(
            f"{folder} belongs to somebody else", "remove it, or set TMPDIR to a folder of yours"
        )
    return folder


@contextmanager
def own_gpus(
    count: int,
    gpus: Sequence[str],
    *,
    folder: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[dict[str, str]]:
    """Holds `count` GPUs for the length of the block; waits until so many are free.

    Args:
        gpus: the names among which to choose, as CUDA_VISIBLE_DEVICES takes them.
        folder: of the locks.
        stopped: says that the wait is over without them.
        say: is told once that there is something to wait for.

    Yields:
        The variables with which a process sees these GPUs and no other; none for a count of 0.

    Raises:
        Stopped: the run was asked to end.
    """
    if not count:
        yield {}
        return
    with ExitStack() as held:
        chosen = _take(count, _lasting_names(gpus), folder or lock_folder(), held)
        if not chosen:
            say(f"waits for {count} of {len(gpus)} GPUs of this machine")
        while not chosen:
            if stopped():
                raise Stopped("waiting for a GPU")
            time.sleep(POLL_SECONDS)
            chosen = _take(count, _lasting_names(gpus), folder or lock_folder(), held)
        yield {VISIBLE: ",".join(chosen)}


def _take(count: int, names: dict[str, str], folder: Path, held: ExitStack) -> list[str]:
    """Locks `count` GPUs or none: two that hold half of what they ask for would wait for ever."""
    with ExitStack() as attempt:
        chosen = []
        for gpu, lasting in names.items():
            handle = attempt.enter_context(open(folder / f"{lasting}.lock", "a", encoding="ascii"))
            if _lock(handle):
                chosen.append(gpu)
            if len(chosen) == count:
                held.push(attempt.pop_all())
                return chosen
    return []


def _lock(handle: IO[str]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _lasting_names(gpus: Sequence[str]) -> dict[str, str]:
    """GPU as it was named -> the name of its lock: a number means another GPU in another container."""
    lasting = dict(installed_gpus()) if any(gpu.isdigit() for gpu in gpus) else {}
    return {gpu: lasting.get(gpu, gpu).replace("/", "-") for gpu in gpus}
