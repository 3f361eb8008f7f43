"""Independent random streams, one for each (seed, purpose): adding a draw to one moves no other."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Returns the generator of one purpose; equal arguments give equal draws on every platform."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Returns one option, uniformly, as the object it is (numpy's own choice would convert it)."""
    return options[int(rng.integers(len(options)))]
