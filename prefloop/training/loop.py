"""The loop of every training on fixed data: resume, accumulate, step, log, checkpoint, stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from prefloop.config.training import TrainingConfig
from prefloop.errors import StopRequested, TrainingError
from prefloop.models.adapter_dropout import begin_step
from prefloop.training.checkpoints import Checkpoints, load_trainable, trainable_state
from prefloop.training.distribution import added, ranks
from prefloop.training.figures import Figures, totals
from prefloop.training.lockstep import backward
from prefloop.training.memory import Limit, MicroBatches, room_for_optimiser
from prefloop.training.noise import Key
from prefloop.training.optimisation import Optimisation, save_memory
from prefloop.training.recorder import Recorder
from prefloop.training.retrying import fitted
from prefloop.training.sharding import gathered, training


@dataclass(frozen=True)
class Part:
    """What a micro-batch adds to its optimiser step.

    Attributes:
        loss: scalar with gradient; the parts of a step sum to the step's loss.
        metrics: scalars that sum to the step's figures, too; tensors are read when the step is over.
    """

    loss: Tensor
    metrics: Figures


_LOSS = "(loss)"
"""The loss's name among the figures of its part, which may have a `loss` of their own."""

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
    micro: MicroBatches | None = None,
) -> dict[str, Any]:
    """Trains `module` in place for `total` optimiser steps, from the last checkpoint if there is one.

    Where several processes share the training (`prefloop.training.distribution`), each computes its share of
    a step's parts, and all take the same step: gradients and figures are summed.

    A step that runs out of memory is taken again, whole, with half the micro-batch, which stays so for the
    rest of the training; the examples of a step remain the same.

    Args:
        parts: see `Parts`.
        key: what the training's noise is for, such as (seed, "sft"): the dropout of adapters is drawn from
            it, the step and the rows (`prefloop.models.adapter_dropout`).
        what: the training's name for messages.
        observer: looks at the module now and then.
        micro: what enters a model at once; where the training samples, too, its sampling shares it.

    Returns:
        Figures for the stage's metrics: `{"out_of_memory": {"micro_batch_size": n}}` if memory ran out, else
        none.

    Raises:
        TrainingError: the loss is NaN or infinite, or a single example does not fit into memory.
        StopRequested: asked to end; a checkpoint was saved.
    """
    optimisation, group = Optimisation(module, config, total), ranks()
    micro = micro or MicroBatches(what, config.micro_batch_size)
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
            begin_step(module, (*key, "step", step))
            loss, figures = accumulated(
                partial(parts, step), micro.passes, config.batch_size, optimisation.clear
            )
            figures = {"loss": loss, **figures}
            micro.tell(recorder, step + 1)
            check_finite(figures["loss"], what, step + 1)
            with room_for_optimiser(what):
                norm, rate = optimisation.step(step)
            check_finite(norm, what, step + 1)
            figures.update(micro.figures())
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


def accumulated(
    parts: Callable[[int], Iterable[Part]], limit: Limit, examples: int, clear: Callable[[], None]
) -> tuple[float, dict[str, float]]:
    """Adds up the gradients of this process's share of a step, in micro-batches that fit into memory.

    Args:
        parts: the share's, for a micro-batch size (0: no limit).
        examples: of the whole step. clear: drops the gradients of a step that did not fit.

    Returns:
        Loss and figures of the whole step.

    Raises:
        TrainingError: a single example does not fit.
    """

    def own() -> tuple[float, dict[str, float]]:
        found = list[Figures]()
        for part in parts(limit.size):
            backward(part.loss)
            found.append({_LOSS: part.loss.detach(), **part.metrics})
        figures = totals(found)
        return figures.pop(_LOSS, 0.0), figures

    shares = fitted(own, limit, examples, clear)
    return sum(loss for loss, _ in shares), added(figures for _, figures in shares)


def check_finite(value: float, what: str, step: int) -> None:
    """Raises TrainingError when `value` is NaN or infinite."""
    if not math.isfinite(value):
        raise TrainingError(
            f"{what}: the loss or gradient became {value} at step {step}",
            "lower the learning rate, raise warmup_ratio, or use compute.precision fp32; "
            "the last checkpoint before it is kept",
        )
