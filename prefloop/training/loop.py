"""The loop of every training on fixed data: resume, accumulate, step, log, checkpoint, stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from prefloop.config.training import TrainingConfig
from prefloop.errors import StopRequested, TrainingError
from prefloop.training.checkpoints import Checkpoints, load_trainable, trainable_state
from prefloop.training.noise import Key, torch_seed
from prefloop.training.optimisation import Optimisation, save_memory
from prefloop.training.recorder import Recorder


@dataclass(frozen=True)
class Part:
    """What a micro-batch adds to its optimiser step.

    Attributes:
        loss: scalar with gradient; the parts of a step sum to the step's loss.
        metrics: scalars that sum to the step's figures, too.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float]


def train(
    module: PreTrainedModel,
    config: TrainingConfig,
    total: int,
    parts: Callable[[int], Iterable[Part]],
    *,
    key: Key,
    checkpoints: Checkpoints,
    recorder: Recorder,
    what: str,
) -> None:
    """Trains `module` in place for `total` optimiser steps, from the last checkpoint if there is one.

    Args:
        parts: for a 0-based step, its micro-batches' parts, each computed when asked for so that only one
            graph is held at a time. Everything random in it is keyed by the step.
        key: what the training's noise is for, such as (seed, "sft"): the dropout of adapters is drawn from it
            and the step, so that a resumed training draws the same.
        what: the training's name for messages.

    Raises:
        TrainingError: the loss is NaN or infinite. StopRequested: asked to end; a checkpoint was saved.
    """
    optimisation = Optimisation(module, config, total)
    start = 0
    found = checkpoints.latest()
    if found:
        start, state = found
        load_trainable(module, state["module"], what)
        optimisation.load_state_dict(state["optimiser"])
    recorder.resume(start)
    save_memory(module, config)
    module.train()
    for step in range(start, total):
        torch_seed((*key, "step", step))
        loss_sum, figures = 0.0, dict[str, float]()
        for part in parts(step):
            part.loss.backward()
            loss_sum += float(part.loss.detach())
            for name, value in part.metrics.items():
                figures[name] = figures.get(name, 0.0) + float(value)
        check_finite(loss_sum, what, step + 1)
        norm, rate = optimisation.step(step)
        check_finite(norm, what, step + 1)
        recorder.log(step + 1, total, {"loss": loss_sum, **figures, "grad_norm": norm, "learning_rate": rate})
        stop = recorder.stop_requested()
        if stop or (checkpoints.due() and step + 1 < total):
            state = {"module": trainable_state(module), "optimiser": optimisation.state_dict()}
            recorder.checkpoint(step + 1, checkpoints.save(step + 1, state))
        if stop:
            raise StopRequested(f"{what} stopped after step {step + 1} of {total}; run again to continue")
    module.eval()


def check_finite(value: float, what: str, step: int) -> None:
    """Raises TrainingError when `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what}: the loss or gradient became {value} at step {step}",
            "lower the learning rate, raise warmup_ratio, or use compute.precision fp32; "
            "the last checkpoint before it is kept",
        )
