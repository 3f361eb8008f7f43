"""`python -m flows.server_process PORT`: Prefect's server on loopback, which ends with its run."""

from __future__ import annotations

import os
import sys

from tasks.support.process import watch_parent


def main() -> None:
    """Serves until it is ended."""
    watch_parent(lambda: os._exit(0))
    import uvicorn

    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
    )


if __name__ == "__main__":
    os.environ.setdefault("PREFECT_UI_ENABLED", "0")
    os.environ.setdefault("PREFECT__SERVER_EPHEMERAL", "1")
    os.environ.setdefault("PREFECT__SERVER_FINAL", "1")
    main()
