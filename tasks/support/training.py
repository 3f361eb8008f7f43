"""What training stages share: the prepared process and the checkpoints in scratch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedModel

from prefloop.config.compute import ComputeConfig
from prefloop.config.read import read_section
from prefloop.config.training import TrainingConfig
from prefloop.models.loading import context_length
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.environment import Environment, apply
from tasks.support.stage import Stage

Config = TypeVar("Config", bound=TrainingConfig)


@dataclass(frozen=True)
class Workbench:
    """A process made ready to train.

    Attributes:
        environment: device, precision, threads.
        checkpoints: in the stage's scratch folder.
        trust_remote_code: from `compute`.
    """

    environment: Environment
    checkpoints: Checkpoints
    trust_remote_code: bool


def prepare(stage: Stage[Any]) -> Workbench:
    """Applies the environment and opens the stage's checkpoints."""
    compute = read_section("compute", ComputeConfig)
    environment = stage.compute
    apply(environment, stage.config.threads)
    return Workbench(
        environment,
        Checkpoints(stage.scratch / "checkpoints", compute.checkpoint_seconds),
        compute.trust_remote_code,
    )


def within_context(config: Config, model: PreTrainedModel) -> Config:
    """The configuration with `max_length` no longer than what the model can read."""
    return replace(config, max_length=min(config.max_length, context_length(model)))


def card(stage: Stage[Any], what: str, data: Iterable[str]) -> dict[str, str]:
    """A model card's sections: nothing in them varies from run to run of the same stage key."""
    return {
        "What it is": what,
        "Data": "\n".join(f"- {line}" for line in data),
        "Made by": f"prefloop, stage `{stage.name}`, seed {stage.seed}",
        "Limits": "Trained for the task and data above; measure it on yours before use.",
    }
