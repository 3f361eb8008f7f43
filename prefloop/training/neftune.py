"""Noise on input embeddings while a model trains (NEFTune: Jain et al. 2023, arXiv 2310.05914)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.data.batching import Batch
from prefloop.data.templates import Encoded
from prefloop.models.adapters import plain
from prefloop.models.loading import embedding_shape
from prefloop.objectives.sft import neftune_noise
from prefloop.training.noise import Key, generator


def noise_of(
    model: PreTrainedModel,
    rows: Sequence[Encoded],
    group: Sequence[Sequence[int]],
    batch: Batch,
    alpha: float,
    key: Key,
) -> Tensor | None:
    """Noise for a batch: (B, T, d) float32, 0 on padding; None where `alpha` is 0.

    It is drawn from (`key`, row), so that a row gets the same noise wherever in a batch it stands.

    Args:
        group: for each row of `batch`, the indices into `rows` of what stands in it, in order.
        key: what the noise is for, the step included.
    """
    if not alpha:
        return None
    width = embedding_shape(plain(model))[1]
    noise = torch.zeros((*batch.input_ids.shape, width))
    for place, members in zip(noise, group, strict=True):
        start = 0
        for i in members:
            length = len(rows[i].input_ids)
            drawn = generator((*key, i)).random((length, width), dtype="float32")
            place[start : start + length] = neftune_noise(torch.from_numpy(drawn), alpha)
            start += length
    return noise.to(batch.input_ids.device)


@contextmanager
def noisy_embeddings(model: PreTrainedModel, noise: Tensor | None) -> Iterator[None]:
    """Within it `noise` (B, T, d) is added to what the input embeddings give; None adds nothing."""
    if noise is None:
        yield
        return

    def add(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
        return embedded + noise.to(embedded.dtype)

    handle = plain(model).get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
