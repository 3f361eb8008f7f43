"""How a process ends: errors speak to the user, and exit codes to scripts."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prefloop.errors import PrefloopError, StopRequested, WorkspaceError
from prefloop.printable import printable
from tasks.support.redact import redact
from tasks.support.signals import Interrupted, StopFlag
from tasks.support.workspace import slug, state_folder

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def ended_well(name: str, stop: StopFlag) -> Iterator[None]:
    """Turns what the block raises into a message on stderr and an exit code.

    A PrefloopError prints its message and remedy; a full disk is one too; any other error is a fault of ours,
    whose traceback goes to .prefloop/crashes/. PREFLOOP_DEBUG=1 shows every traceback.
    """
    try:
        yield
    except (StopRequested, Interrupted):
        _print(f"{name}: stopped; run again to go on from the last checkpoint")
        raise SystemExit(stop.exit_code) from None
    except PrefloopError as error:
        _refuse(name, error)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            _crash(name, error)
        where = f" ({error.filename})" if error.filename else ""
        _refuse(
            name,
            WorkspaceError(
                f"the disk is full{where}", "free disk space, then run again: it goes on where it was"
            ),
        )
    except Exception as error:
        _crash(name, error)


def _refuse(name: str, error: PrefloopError) -> None:
    if os.environ.get("PREFLOOP_DEBUG"):
        traceback.print_exc()
    _print(f"{name}: {error}")
    raise SystemExit(error.exit_code) from None


def _crash(name: str, error: BaseException) -> None:
    text = redact("traceback", "".join(traceback.format_exception(error)))
    path = state_folder() / "crashes" / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{slug(name)}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        where = f"the traceback is in {path}"
    except OSError:
        where = text
    if os.environ.get("PREFLOOP_DEBUG"):
        _print(text)
    first = (str(error).splitlines() or [""])[0]
    _print(f"{name}: an error of prefloop's own: {type(error).__name__}: {first}\n  {where}")
    raise SystemExit(1) from None


def _print(text: str) -> None:
    try:
        sys.stderr.write(printable(redact("error", text)) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
