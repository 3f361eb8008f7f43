"""`python -m flows.server_process PORT`, or `fd:NUMBER` for an open socket that is handed down: Prefect's
server on loopback, which ends with its run. With `--pages` it has pages, and does all that a server does.

It answers to the names of loopback alone, and to no page of another site: see flows/own_pages.py.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from flows.own_pages import OwnPages
from tasks.support.process import watch_parent

ORIGINS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"


def main(word: str) -> None:
    """Serves until it is ended."""
    watch_parent(lambda: os._exit(0))
    import uvicorn

    handed_down = [socket.socket(fileno=int(word.removeprefix("fd:")))] if word.startswith("fd:") else None
    port = int(handed_down[0].getsockname()[1] if handed_down else word)
    own = ",".join(f"http://{name}:{port}" for name in ("127.0.0.1", "localhost"))
    origins = os.environ.setdefault(ORIGINS, own).split(",")

    def application() -> Any:
        from prefect.server.api.server import create_app

        return OwnPages(create_app(), origins)

    server = uvicorn.Config(
        application, factory=True, host="127.0.0.1", port=0 if handed_down else port, log_level="error"
    )
    uvicorn.Server(server).run(sockets=handed_down)


if __name__ == "__main__":
    if "--pages" not in sys.argv:
        os.environ.setdefault("PREFECT_UI_ENABLED", "0")
        os.environ.setdefault("PREFECT__SERVER_EPHEMERAL", "1")
    os.environ.setdefault("PREFECT__SERVER_FINAL", "1")
    main(sys.argv[1])
