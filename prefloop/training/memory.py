"""When memory runs out: less at once, the same optimiser step and the same completions."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prefloop.errors import TrainingError
from prefloop.training.recorder import Recorder

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
REMEDY = "lower max_length, set gradient_checkpointing to true, or train an adapter alone (lora.rank above 0)"
SHARDED_REMEDY = (
    f"set a lower micro_batch_size (1 is the least); if that does not do, {REMEDY}; "
    "a run with the same values otherwise goes on from the last checkpoint"
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch raises when a device or the machine has no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@dataclass
class Limit:
    """How many examples enter a model at once: as configured, or fewer once memory ran out.

    Attributes:
        what: the training's name for messages.
        figure: name that a reduced size is logged by. said: how a line puts it.
        alone: what does not fit when a single one does not. remedy: what then helps.
        size: at most so many; 0 sets no limit.
        reduced: True once memory ran out. told: the reduced size that was told last; 0 before.
    """

    what: str
    figure: str
    said: str
    alone: str
    remedy: str
    size: int = 0
    reduced: bool = False
    told: int = 0

    def halve(self, held: int) -> None:
        """Goes on with half of what the failed pass held at most, after its memory is free.

        Args:
            held: examples that it would hold without a limit.

        Raises:
            TrainingError: that is a single one.
        """
        held = min(self.size or held, held)
        if held <= 1:
            raise TrainingError(f"{self.what}: memory runs out with a single {self.alone}", self.remedy)
        self.size, self.reduced = held // 2, True
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class MicroBatches:
    """How much of a training enters its models at once.

    Args:
        what: the training's name for messages. size: its `micro_batch_size`.

    Attributes:
        passes: examples of a forward pass, with gradient or without.
        sampled, scored: completions that are sampled, or scored, at once; where nothing ran out of memory,
            engine and reward model have limits of their own.
    """

    def __init__(self, what: str, size: int = 0) -> None:
        shorter = "lower sampling.max_new_tokens"
        self.passes = Limit(
            what, "micro_batch_size", "a micro-batch of {}", "example a forward pass", REMEDY, size
        )
        self.sampled = Limit(
            what, "sampled_at_once", "{} completions sampled at once", "completion sampled at once", shorter
        )
        self.scored = Limit(
            what,
            "scored_at_once",
            "{} completions scored at once",
            "completion scored at once",
            f"{shorter}, or train a smaller reward model",
        )

    @property
    def _all(self) -> tuple[Limit, ...]:
        return self.passes, self.sampled, self.scored

    def figures(self) -> dict[str, float]:
        """The sizes that memory reduced, to be logged; empty if it never ran out."""
        return {name: float(size) for name, size in self.state_dict().items()}

    @property
    def outcome(self) -> dict[str, Any]:
        """For a stage's figures: `out_of_memory` with the sizes that fitted; empty if it never ran out."""
        return {"out_of_memory": found} if (found := self.state_dict()) else {}

    def tell(self, recorder: Recorder, step: int) -> None:
        """Says what was reduced, in 1-based `step`, and not yet told."""
        for limit in self._all:
            if limit.reduced and limit.told != limit.size:
                size = limit.said.format(limit.size)
                recorder.say(f"out of memory at step {step}: goes on with {size}, exempt from byte identity")
                limit.told = limit.size

    def state_dict(self) -> dict[str, int]:
        """The sizes that memory reduced."""
        return {limit.figure: limit.size for limit in self._all if limit.reduced}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Takes over reduced sizes, so that a resumed training does not run out again."""
        for limit in self._all:
            if limit.figure in state:
                limit.size = limit.told = int(state[limit.figure])
                limit.reduced = True


@contextmanager
def room_for_optimiser(what: str) -> Iterator[None]:
    """For an optimiser's step: it may have moved some weights when memory runs out, so it is not tried again.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(f"{what}: memory runs out for the optimiser's state", REMEDY) from error
