"""`python -m flows.warm_process ADDRESS MODULE...`: imports what stages need, and forks for them.

Importing torch and transformers costs a stage several seconds of processor time, and importing DVC half a
second more. This process does it once in a run; its forks find the modules there:

    warm process --> leader --> DVC --> sh --> python -m tasks.sft, which asks the leader, and waits
                           \\--> the stage itself

Only imports happen before a fork, no computation: thread pools do not survive one. What is not imported yet
when a stage starts, its fork imports for itself. See flows/warm_leader.py for what a leader is.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from flows.warm_leader import Work, ended, lead
from flows.warm_messages import listen, receive
from tasks.support.process import PARENT_PIPE


def main(address: str, modules: Sequence[str]) -> Work | None:
    """Imports the modules, and forks when asked, until the run is over.

    Returns:
        None at the end; in each fork, what that fork is to do.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A leader tells by itself how it ended. Once it is reaped, what it and its own used counts as ours.
    signal.signal(signal.SIGCHLD, lambda _number, _frame: ended())
    environment = dict(os.environ)  # some libraries change it as they are imported
    listener = listen(address)
    run = os.open(os.environ[PARENT_PIPE], os.O_RDONLY | os.O_NONBLOCK)
    missing = list(modules)
    while True:
        ready = select.select([listener.fileno(), run], [], [], 0 if missing else None)[0]
        if run in ready and os.read(run, 4096) == b"":
            return None
        if listener.fileno() in ready:
            connection, _ = listener.accept()
            with connection:
                asked, (output, status) = receive(connection, 2)
            if not os.fork():
                listener.close()
                os.close(run)
                return lead(asked, output, status, address, environment)
            os.close(output)
            os.close(status)
        elif missing:
            with suppress(ImportError):  # the stage that needs it fails with the same error, and is heard
                importlib.import_module(missing.pop(0))
            gc.freeze()  # a collection in a fork would write to, and so copy, every page


if __name__ == "__main__":
    work = main(sys.argv[1], sys.argv[2:])
    sys.exit(work() if work else 0)  # above, the frames of `main` are gone: a fork ends as any process does
