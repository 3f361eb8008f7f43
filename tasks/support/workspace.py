"""Where a workspace keeps its state: everything undeclared lies under .prefloop/."""

from __future__ import annotations

import os
from pathlib import Path

PIPELINE_ID = "PREFLOOP_PIPELINE_ID"
KINDS_OF_PARTS = ("evaluate", "validate")
"""Stages with parts that are named after something else: a policy, a kind of rows."""


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
    """A stage's name as file names carry it: `evaluate@ppo` becomes `evaluate-ppo`.

    A stage that trains a policy, `ppo@ppo-loose`, goes by the policy's name, which no other has.
    """
    group, _, part = stage.partition("@")
    return (f"{group}-{part}" if group in KINDS_OF_PARTS else part or group).replace("/", "-")


def metrics_file(stage: str) -> Path:
    """Where a stage writes its figures: metrics/<stage>.json; those of policies stand together, as the report
    reads them all, whatever they are called."""
    group, _, part = stage.partition("@")
    policy = part and group not in KINDS_OF_PARTS
    return Path("metrics/policies" if policy else "metrics") / f"{slug(stage)}.json"
