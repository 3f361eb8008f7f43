"""What training stages share: the prepared process and the checkpoints in scratch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from transformers import PreTrainedModel

from prefloop.config.compute import ComputeConfig
from prefloop.config.read import read_section
from prefloop.config.training import TrainingConfig
from prefloop.models.loading import context_length
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.environment import Environment, apply
from tasks.support.flatten import flatten
from tasks.support.sharing import shared
from tasks.support.stage import Stage

# How a training is laid out on the machine, and how it is watched. The weights are the same up to rounding,
# often to the bit: the card then must not differ either, or all that follows from the model would run again.
_LAYOUT = ("threads", "micro_batch_size", "gradient_checkpointing", "looks", "look_tokens")

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
    """Applies the environment, starts the other processes that share the stage's trainings, and opens its
    checkpoints."""
    compute = read_section("compute", ComputeConfig)
    environment = replace(stage.compute, precision=stage.config.precision or stage.compute.precision)
    apply(environment, stage.config.threads)
    stage.hold(shared(environment, stage.scratch))
    return Workbench(
        environment,
        Checkpoints(stage.scratch / "checkpoints", compute.checkpoint_seconds),
        compute.trust_remote_code,
    )


def within_context(config: Config, model: PreTrainedModel) -> Config:
    """The configuration with `max_length` no longer than what the model can read."""
    return replace(config, max_length=min(config.max_length, context_length(model)))


def card(
    stage: Stage[Any], what: str, data: Iterable[str], metrics: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """A model card's sections: nothing in them varies from run to run of the same stage key.

    Args:
        what: what the model is, in a sentence.
        data: what it was trained on, a line each; without any, it was not trained here, and the section's
            parameters are left out.
        metrics: figures on held-out data, nested as in the stage's metrics; rounded to four digits.
    """
    lines = [f"- {line}" for line in data]
    sections = {"What it is": what, "Data": "\n".join(lines)}
    if lines:
        knobs = {k: json.dumps(v) for k, v in flatten(asdict(stage.config)).items() if k not in _LAYOUT}
        sections["Parameters"] = _table("parameter", knobs)
    if metrics:
        sections["Metrics"] = _table(
            "on held-out data", {k: _rounded(v) for k, v in flatten(metrics).items()}
        )
    return {
        **sections,
        "Made by": f"prefloop, stage `{stage.name}`, seed {stage.seed}",
        "Limits": "Trained for the task and data above and checked on nothing else: it can be wrong, and can "
        "repeat what is false, harmful or private in its data. The licences of the model it started from and "
        "of its data hold. Measure it on yours before use.",
    }


def _table(heading: str, rows: Mapping[str, str]) -> str:
    return "\n".join(
        [f"| {heading} | value |", "| --- | --- |", *(f"| `{k}` | {v} |" for k, v in rows.items())]
    )


def _rounded(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
