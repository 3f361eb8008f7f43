"""Randomness keyed by what it is for, so that a resumed or re-batched run draws the same numbers.

A draw depends on its key alone (seed, purpose, step, prompt, sample), never on how many draws came before
it, on the process that makes it or on its place in a batch. There is therefore no generator state to save.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Key = tuple[int | str, ...]


def generator(key: Key) -> np.random.Generator:
    """A NumPy generator (Philox) for one key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def uniforms(key: Key, rows: Sequence[Key], length: int) -> Tensor:
    """Uniform draws in [0, 1): (len(rows), length) float64, row i from the key (*key, *rows[i])."""
    return torch.from_numpy(np.stack([generator((*key, *row)).random(length) for row in rows]))


def permutation(key: Key, size: int) -> list[int]:
    """A permutation of range(size)."""
    return [int(i) for i in generator(key).permutation(size)]


def seed_of(key: Key) -> int:
    """A seed in [0, 2^63) for a generator that is not ours, from a key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_seed(key: Key) -> None:
    """Seeds torch's global generators (weight initialisation) from a key."""
    torch.manual_seed(seed_of(key))
