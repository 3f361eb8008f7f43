"""Prompts are read a few thousand tokens at a time, similar lengths together, into one cache for all rows.

In one pass the longest prompt pads all others, and what a pass holds beside the cache, activations of every
token, would be most of the memory that sampling takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from prefloop.models.forward import next_token_logits, positions
from prefloop.rollout.kv_cache import roomy_cache, roomy_layers

TOKENS = 2**11
"""Of a pass on a CPU, padding counted."""
GPU_TOKENS = 2**14
"""Likewise on a GPU; unmeasured."""


def prefill(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], source: Tensor, pad: int, step: int
) -> tuple[Tensor, Tensor, DynamicCache]:
    """What follows prompts, and the cache to go on with.

    Args:
        prompts: tokens, each prompt once.
        source: (B,) int64, the prompt that a row begins with.
        pad: token in places without one, on the left.
        step: buffers of the cache grow by so many tokens.

    Returns:
        Logits of the next token (B, V); (B, T) int64, 1 on real tokens, T being the longest prompt's; the
        cache of B rows.
    """
    width = max(map(len, prompts))
    lengths = torch.tensor([len(ids) for ids in prompts], device=source.device)
    real = (torch.arange(width, device=source.device) >= (width - lengths).unsqueeze(1)).long()
    cache = roomy_cache(model, step)
    layers = roomy_layers(cache)
    if len(layers) < len(cache.layers):  # a window or a state: not put together
        logits = _read(model, prompts, pad, cache)
        if len(prompts) < len(source):
            cache.batch_select_indices(source)
        return logits[source], real[source], cache
    found = []
    passes = list(groups_within(prompts, TOKENS if model.device.type == "cpu" else GPU_TOKENS))
    for places in passes:
        part = roomy_cache(model, 1)
        found.append(_read(model, [prompts[i] for i in places], pad, part))
        at = torch.full((len(prompts),), -1, device=source.device)
        at[places] = torch.arange(len(places), device=source.device)
        rows = (at[source] >= 0).nonzero().squeeze(-1)
        for layer, read in zip(layers, roomy_layers(part), strict=True):
            layer.put(rows, at[source[rows]], read, (len(source), width))
    order = torch.tensor([i for places in passes for i in places], device=source.device)
    return torch.cat(found)[order.argsort()][source], real[source], cache


def groups_within(prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
    """Places of the prompts that are read together: from short to long, at most so many tokens with padding,
    but at least one prompt.

    `prefloop.data.batching.length_groups` saves padding, but sets no limit to a group.
    """
    places: list[int] = []
    for place in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        if places and (len(places) + 1) * len(prompts[place]) > tokens:
            yield places
            places = []
        places.append(place)
    if places:
        yield places


def _read(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int, cache: DynamicCache) -> Tensor:
    """Logits after each prompt, (N, V), whose keys and values the cache then holds."""
    width = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[pad] * (width - len(own)) + list(own) for own in prompts], device=device)
    real = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in prompts], device=device)
    return next_token_logits(
        model,
        input_ids=ids,
        attention_mask=real,
        position_ids=positions(real),
        past_key_values=cache,
        use_cache=True,
    )
