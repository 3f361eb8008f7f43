"""When memory runs out: smaller micro-batches, the same optimiser step."""

from __future__ import annotations

import gc
from typing import Any

import torch

from prefloop.config.training import TrainingConfig
from prefloop.errors import TrainingError

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


class MicroBatches:
    """How many examples a forward pass holds: as configured, or fewer once memory ran out.

    Attributes:
        size: examples a forward pass at most; 0 sets no limit.
        reduced: True once memory ran out.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.size, self.reduced = config.micro_batch_size, False
        self._most = config.batch_size

    def halve(self, what: str) -> None:
        """Goes on with half the size, after what the failed pass held is free.

        Raises:
            TrainingError: it is 1 already.
        """
        size = min(self.size or self._most, self._most)
        if size <= 1:
            raise TrainingError(f"{what}: memory runs out with a single example a forward pass", REMEDY)
        self.size, self.reduced = size // 2, True
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def outcome(self) -> dict[str, Any]:
        """For a stage's figures: `out_of_memory` with the size that fitted; empty if memory never ran out."""
        return {"out_of_memory": {"micro_batch_size": self.size}} if self.reduced else {}

    def state_dict(self) -> dict[str, Any]:
        return {"size": self.size, "reduced": self.reduced}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a reduced size, so that a resumed training does not run out again."""
        if state["reduced"]:
            self.size, self.reduced = int(state["size"]), True
