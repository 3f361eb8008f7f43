"""Where a worker keeps its clones and their DVC cache: a folder a workspace, in it a clone a stage."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tasks.support.workspace import slug

VARIABLE = "PREFLOOP_WORKER_FOLDER"


def worker_folder() -> Path:
    """Of this worker, absolute."""
    return Path(os.environ.get(VARIABLE) or Path.home() / ".prefloop" / "workers").absolute()


def clone_folder(place: str, stage: str) -> Path:
    """Where this worker keeps its clone for a stage of the workspace that exchanges through `place`."""
    return worker_folder() / hashlib.sha256(place.encode()).hexdigest()[:16] / slug(stage)
