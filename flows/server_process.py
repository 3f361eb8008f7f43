"""`python -m flows.server_process PORT`, or `fd:NUMBER` for an open socket that is handed down: Prefect's
server on loopback, which ends with its run."""

from __future__ import annotations

import os
import socket
import sys

from tasks.support.process import watch_parent


def main() -> None:
    """Serves until it is ended."""
    watch_parent(lambda: os._exit(0))
    import uvicorn

    word = sys.argv[1]
    handed_down = [socket.socket(fileno=int(word.removeprefix("fd:")))] if word.startswith("fd:") else None
    server = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=0 if handed_down else int(word),
        log_level="error",
    )
    uvicorn.Server(server).run(sockets=handed_down)


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_UI_ENABLED", "0")
    os.environ.setdefault("PREFECT__SERVER_EPHEMERAL", "1")
    os.environ.setdefault("PREFECT__SERVER_FINAL", "1")
    main()
