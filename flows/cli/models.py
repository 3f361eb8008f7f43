"""Models that commands take by name."""

from __future__ import annotations

import sys
from pathlib import Path

from flows.planning.absent import has_remote


def fetch_if_absent(model: str) -> None:
    """Fetches a model that a worker made and that is in the workers' remote alone.

    Raises:
        StorageAway: the remote does not answer.
    """
    if not has_remote(Path(".")) or (Path("models") / model).exists() or Path(model).exists():
        return
    from flows.workers.here import bring_model

    bring_model(Path("."), model, lambda line: print(line, file=sys.stderr))
