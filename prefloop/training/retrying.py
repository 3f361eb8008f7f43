"""What runs out of memory is computed again with less at once, by all processes of a training together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from prefloop.training.distribution import ranks
from prefloop.training.memory import Limit, is_out_of_memory

T = TypeVar("T")


def nothing() -> None:
    """Nothing is to be undone."""


def fitted(compute: Callable[[], T], limit: Limit, held: int, undo: Callable[[], None] = nothing) -> list[T]:
    """What each process computes, in the order of ranks; from its beginning with half at once where memory
    runs out in one of them, and half of that, until it fits.

    Args:
        compute: looks at `limit.size` each time.
        held: examples that a pass would hold without a limit.
        undo: takes back what a failed `compute` left.

    Raises:
        TrainingError: a single example does not fit.
    """
    while True:
        try:
            return ranks().together(compute)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Nothing refers to the error any more, nor to the failed pass through it: its memory is free.
        undo()
        limit.halve(held)
