"""One module a pipeline stage, run as `python -m tasks.STAGE`."""

import os
import sys


def _ask_leader(address: str, module: str) -> None:
    """Has this stage run in a fork of a process that has its imports (see flows/warm_leader.py), and ends as
    the fork does. Returns where that cannot be: then the stage runs here."""
    import json
    import signal
    import socket

    with socket.socket(socket.AF_UNIX) as leader:
        try:
            leader.connect(address)
            asked = {"module": module, "arguments": sys.argv[1:], "folder": os.getcwd()}
            content = json.dumps({**asked, "environment": dict(os.environ)}).encode()
            socket.send_fds(leader, [len(content).to_bytes(8, "big")], [0, 1, 2])
            leader.sendall(content)
        except OSError:
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the fork gets it too, and decides
        with leader.makefile("rb") as answer:
            length = int.from_bytes(answer.read(8), "big")
            status = json.loads(answer.read(length))["status"] if length else 1
    if status is None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


_leader = os.environ.pop("PREFLOOP_LEADER", "")
_words = sys.orig_argv[1:]
if _leader and sys.argv[:1] == ["-m"] and "-m" in _words:
    _ask_leader(_leader, _words[_words.index("-m") + 1])
