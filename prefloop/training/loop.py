"""The loop of every training on fixed data: resume, accumulate, step, log, checkpoint, stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from prefloop.config.training import TrainingConfig
from prefloop.errors import StopRequested, TrainingError
from prefloop.training.checkpoints import Checkpoints, load_trainable, trainable_state
from prefloop.training.distribution import added, ranks
from prefloop.training.lockstep import backward
from prefloop.training.memory import REMEDY, MicroBatches, is_out_of_memory
from prefloop.training.noise import Key, torch_seed
from prefloop.training.optimisation import Optimisation, save_memory
from prefloop.training.recorder import Recorder
from prefloop.training.sharding import gathered, training


@dataclass(frozen=True)
class Part:
    """What a micro-batch adds to its optimiser step.

    Attributes:
        loss: scalar with gradient; the parts of a step sum to the step's loss.
        metrics: scalars that sum to the step's figures, too.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor | float]


Parts = Callable[[int, int], Iterable[Part]]
"""For a 0-based step and a micro-batch size (0: no limit), its micro-batches' parts, each computed when asked
for so that only one graph is held at a time. Everything random in it is keyed by the step. Of several
processes each gives the parts of its share, which may be none; they sum to the step's over all of them."""


class Observer(Protocol):
    """Looks at the module between two steps, and leaves it and its training as they were."""

    def due(self, step: int, total: int) -> bool:
        """True after the 1-based steps, of `total`, that it wants to see."""

    def look(self, step: int) -> Mapping[str, float]:
        """Figures of the step, to be logged with it."""

    def state_dict(self) -> dict[str, Any]:
        """What it has seen so far: plain containers and tensors, for a checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""


def train(
    module: PreTrainedModel,
    config: TrainingConfig,
    total: int,
    parts: Parts,
    *,
    key: Key,
    checkpoints: Checkpoints,
    recorder: Recorder,
    what: str,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Trains `module` in place for `total` optimiser steps, from the last checkpoint if there is one.

    Where several processes share the training (`prefloop.training.distribution`), each computes its share of
    a step's parts, and all take the same step: gradients and figures are summed.

    A step that runs out of memory is taken again, whole, with half the micro-batch, which stays so for the
    rest of the training; the examples of a step remain the same.

    Args:
        parts: see `Parts`.
        key: what the training's noise is for, such as (seed, "sft"): the dropout of adapters is drawn from it
            and the step, so that a resumed training draws the same.
        what: the training's name for messages.
        observer: looks at the module now and then.

    Returns:
        Figures for the stage's metrics: `{"out_of_memory": {"micro_batch_size": n}}` if memory ran out, else
        none.

    Raises:
        TrainingError: the loss is NaN or infinite, or a single example does not fit into memory.
        StopRequested: asked to end; a checkpoint was saved.
    """
    optimisation, micro, group = Optimisation(module, config, total), MicroBatches(config), ranks()
    start = 0
    found = checkpoints.latest()
    if found:
        start, state = found
        load_trainable(module, state["module"], what)
        optimisation.load_state_dict(state["optimiser"])
        micro.load_state_dict(state["micro_batches"])
        if observer is not None:
            observer.load_state_dict(state["observer"])
    group.copy_from_main(optimisation.replicated)
    recorder.resume(start)
    save_memory(module, config)
    module.train()
    with training(module):
        for step in range(start, total):
            before = micro.size
            # Outside `_accumulated` nothing refers to a failed pass any more, so that its memory is free.
            while (figures := _accumulated(parts, step, micro.size, (*key, "step", step))) is None:
                optimisation.clear()
                micro.halve(what)
            if micro.size != before:
                recorder.say(f"out of memory at step {step + 1}: goes on with a micro-batch of {micro.size}")
            check_finite(figures["loss"], what, step + 1)
            norm, rate = _applied(optimisation, step, what)
            check_finite(norm, what, step + 1)
            if micro.reduced:
                figures["micro_batch_size"] = float(micro.size)
            if observer is not None and observer.due(step + 1, total):
                with gathered(module):
                    figures.update(observer.look(step + 1))
            recorder.log(step + 1, total, {**figures, "grad_norm": norm, "learning_rate": rate})
            stop = group.from_main(recorder.stop_requested())
            if stop or (step + 1 < total and checkpoints.due()):
                state = {
                    "module": trainable_state(module),
                    "optimiser": optimisation.state_dict(),
                    "micro_batches": micro.state_dict(),
                    **({} if observer is None else {"observer": observer.state_dict()}),
                }
                recorder.checkpoint(step + 1, checkpoints.save(step + 1, state))
            if stop:
                raise StopRequested(f"{what} stopped after step {step + 1} of {total}; run again to continue")
    module.eval()
    return micro.outcome


def _accumulated(parts: Parts, step: int, micro_batch_size: int, noise: Key) -> dict[str, float] | None:
    """Adds up the gradients of this process's share of a step.

    Returns:
        Loss and figures of the whole step; None if memory ran out on the way.
    """
    group = ranks()
    # The draws of an adapter's dropout must not be alike in two shares.
    torch_seed((*noise, "rank", group.rank) if group.rank else noise)

    def own() -> dict[str, float]:
        figures = {"loss": 0.0}
        for part in parts(step, micro_batch_size):
            backward(part.loss)
            for name, value in {"loss": part.loss.detach(), **part.metrics}.items():
                figures[name] = figures.get(name, 0.0) + float(value)
        return figures

    try:
        return added(group.together(own))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def _applied(optimisation: Optimisation, step: int, what: str) -> tuple[float, float]:
    """The optimiser's step; it may have moved some weights when memory runs out, so it is not tried again."""
    try:
        return optimisation.step(step)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"{what}: memory runs out for the optimiser's state", REMEDY) from error


def check_finite(value: float, what: str, step: int) -> None:
    """Raises TrainingError when `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what}: the loss or gradient became {value} at step {step}",
            "lower the learning rate, raise warmup_ratio, or use compute.precision fp32; "
            "the last checkpoint before it is kept",
        )
