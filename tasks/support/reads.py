"""What a stage takes of all that dvc.yaml says that it reads: its section decides. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefloop.config.judge import JudgeConfig
from prefloop.config.orpo import ORPOConfig
from prefloop.config.policies import overlaid
from prefloop.config.reward import RewardConfig

FITTED, SAMPLED, CHOSE, NORMALISED = "fitted", "sampled", "chose the weights", "set the scale"
SEEN = (FITTED, SAMPLED, CHOSE, NORMALISED)
"""What a row can be for such that a model's files follow from it."""
HELD_OUT, NOT_DRAWN, UNUSED = "held out", "in no step", "orders nothing"
"""What the other rows of a file are."""


def section_of(group: str, part: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a stage; of one that trains a policy with the policy's own laid over them."""
    entries = (parameters.get("policies") or {}).get(group) or {}
    own = {key: value for key, value in (entries.get(part) or {}).items() if key != "method"}
    return overlaid(parameters.get(group) or {}, own)


def models_read(group: str, parameters: Mapping[str, Any], deps: Iterable[str]) -> tuple[str, ...]:
    """Folders of the models from whose weights, or answers, a stage's result follows.

    Args:
        group: the stage, without its part.
        parameters: what it read of params.yaml.
        deps: what dvc.yaml says that it reads.
    """
    models = tuple(path for path in deps if path.startswith("models/"))
    (part,) = tuple((parameters.get("policies") or {}).get(group) or {"": {}})[:1]
    section = section_of(group, part, parameters)
    if group == "orpo":
        return tuple(path for path in models if path == f"models/{section.get('start', ORPOConfig.start)}")
    if group == "judge" and section.get("kind", JudgeConfig.kind) == "gold":
        return ()
    if group in ("reward", "judge"):  # SFT's answers give it mean and spread, whatever its trunk is
        trunk = section.get("base", RewardConfig.base)
        return tuple(path for path in models if path in ("models/sft", f"models/{trunk}"))
    return models
