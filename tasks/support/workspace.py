"""Where a workspace keeps its state: everything undeclared lies under .prefloop/."""

from __future__ import annotations

import os
from pathlib import Path

PIPELINE_ID = "PREFLOOP_PIPELINE_ID"


def state_folder() -> Path:
    """The `.prefloop` folder that outlives this process.

    `dvc exp run --temp` works in a clone that is thrown away, with DVC_ROOT naming the repository it came
    from: tracking and scratch belong there. PREFLOOP_STATE overrides both.
    """
    chosen = os.environ.get("PREFLOOP_STATE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("DVC_ROOT") or ".").absolute() / ".prefloop"


def slug(stage: str) -> str:
    """A stage's name as file names carry it: `evaluate@ppo` becomes `evaluate-ppo`."""
    return stage.replace("@", "-").replace("/", "-")
