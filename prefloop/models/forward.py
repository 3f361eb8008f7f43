"""Forward passes that training and sampling share: positions, hidden states, log-probs where needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.data.batching import length_groups
from prefloop.errors import ConfigError
from prefloop.models.adapters import plain
from prefloop.models.chosen_logprobs import chosen_logprobs, entropies
from prefloop.models.halves import halves, side_by_side
from prefloop.models.head_logprobs import head_logprobs
from prefloop.models.heads import read, reads_in_float32
from prefloop.models.ragged import Flat, flat_states, flatten, reads_flat

TOKENS_AT_ONCE = 6144
"""Tokens of a forward pass without padding, about: it bounds what is held for the backward pass."""

# Architectures that change logits after the head; for them the model's own forward is used.
_LOGIT_ADJUSTMENTS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def adjusts_logits(model: PreTrainedModel) -> bool:
    """True where logits are more than the output layer's product with the last hidden states."""
    return any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_ADJUSTMENTS)


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token from the first real one: (B, T) bool or int -> (B, T) int64, 0 on padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def preceding(wanted: Tensor) -> Tensor:
    """True on the token before each wanted one, where it is predicted: (B, T) bool -> (B, T) bool."""
    before = torch.zeros_like(wanted)
    before[:, :-1] = wanted[:, 1:]
    return before


def precision_context(precision: str, device: str) -> AbstractContextManager[object]:
    """Autocast to bf16 when asked; weights and optimiser stay in float32."""
    if precision == "bf16":
        return torch.autocast(device_type=device, dtype=torch.bfloat16)
    return nullcontext()


def _reads(attention_mask: Tensor, position_ids: Tensor | None) -> dict[str, Tensor | None]:
    """Which tokens a forward pass sees, and where.

    Without an attention mask transformers takes each restart of the positions for another document, and lets
    none see another, in full and in sliding-window layers (`find_packed_sequence_indices` in masking_utils).
    """
    if position_ids is not None:
        return {"attention_mask": None, "position_ids": position_ids}
    return {"attention_mask": attention_mask.long(), "position_ids": positions(attention_mask)}


def forward_groups(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Rows for one forward pass each, shortest first.

    Where padding costs nothing (`reads_flat`) they are as many as TOKENS_AT_ONCE allows, else of similar
    length.

    Args:
        lengths: tokens of each row.

    Returns:
        Indices into `lengths`.
    """
    if not reads_flat(plain(model).base_model):
        return length_groups(lengths, model.device.type)
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    passes = max(-(-sum(lengths) // TOKENS_AT_ONCE), 1)
    groups: list[list[int]] = [[] for _ in range(passes)]
    filled, each = 0, max(sum(lengths) / passes, 1)
    for i in order:
        groups[min(int(filled / each), passes - 1)].append(i)
        filled += lengths[i]
    return [group for group in groups if group]


def passes_of(model: PreTrainedModel, lengths: Sequence[int]) -> list[list[list[int]]]:
    """`forward_groups`, each alone, or a single one in two halves that go `side_by_side`.

    Args:
        lengths: tokens of each row.

    Returns:
        Indices into `lengths`, of what goes at the same time.
    """
    groups, trunk = forward_groups(model, lengths), plain(model).base_model
    if len(groups) == 1 and reads_flat(trunk) and not adjusts_logits(model):
        found = halves(trunk, lengths)
        if found is not None:
            return [found]
    return [[group] for group in groups]


def in_passes(
    model: PreTrainedModel, lengths: Sequence[int], one: Callable[[list[int]], Tensor]
) -> tuple[Tensor, list[int]]:
    """What `one` makes of the rows of each pass, end to end, and the rows' numbers in that order.

    Args:
        lengths: tokens of each row. one: enters the contexts that it needs.
    """
    found, order = list[Tensor](), list[int]()
    for groups in passes_of(model, lengths):
        found += side_by_side(model, [partial(one, group) for group in groups])
        order += [i for group in groups for i in group]
    return torch.cat(found), order


def hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor | None = None,
    *,
    wanted: Tensor | None = None,
    padded: bool = False,
) -> Tensor:
    """Last hidden states of a model's trunk: (B, T) -> (B, T, D); 0 on padding, or anything finite.

    Args:
        position_ids: (B, T) int64 for rows of several documents (`prefloop.data.batching.pack`).
        wanted: (B, T) bool, True on the real tokens whose states are wanted; elsewhere stands anything
            finite. None: all of them.
        padded: see `token_logprobs`.
    """
    trunk = plain(model).base_model
    if not padded and reads_flat(trunk):
        flat = _flattened(input_ids, attention_mask, position_ids)
        own = (attention_mask if wanted is None else wanted).flatten()[flat.origin].nonzero().squeeze(1)
        states = flat_states(trunk, flat.input_ids, flat.position_ids, flat.layout, own)
        nothing = states.new_zeros((input_ids.numel(), states.shape[-1]))
        return nothing.index_copy(0, flat.origin[own], states).view(*input_ids.shape, -1)
    hidden: Tensor = trunk(
        input_ids=input_ids, use_cache=False, **_reads(attention_mask, position_ids)
    ).last_hidden_state
    return hidden


@torch.no_grad()
def require_isolation(model: PreTrainedModel, *, padded: bool = False) -> None:
    """Refuses to pack for a model in which documents that share a row would see each other.

    Recurrent architectures and those with position schemes of their own are among these. One document is
    read after either of two others; what is made of it must be the same, and the same as alone.

    Args:
        padded: passes are to see batches as they are, see `token_logprobs`.

    Raises:
        ConfigError: the model does not keep documents apart.
    """
    training = model.training
    model.eval()
    one, other = torch.tensor([[[1, 2, 3, 4, 5, 6]], [[4, 3, 2, 4, 5, 6]]], device=model.device)
    real = torch.ones_like(one, dtype=torch.bool)
    places = torch.tensor([[0, 1, 2, 0, 1, 2]], device=model.device)
    after_one, after_other = (
        hidden_states(model, ids, real, places, padded=padded)[0, 3:] for ids in (one, other)
    )
    alone = hidden_states(model, one[:, 3:], real[:, 3:], padded=padded)[0]
    model.train(training)
    scale = float(alone.abs().max())
    # Two passes of one shape round alike; a pass of another shape may round otherwise.
    leak = float((after_one - after_other).abs().max())
    shift = float((after_one - alone).abs().max())
    kind = model.config.model_type
    if leak > 1e-6 * scale or shift > 1e-2 * scale:
        raise ConfigError(
            f"sft.packing is on, but documents of one row see each other in a model of type {kind}",
            "set sft.packing to false",
        )


def token_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    wanted: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    hidden: Tensor | None = None,
    position_ids: Tensor | None = None,
    padded: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each wanted token given those before it; the head runs on those positions alone.

    Args:
        input_ids: (B, T) int64. attention_mask: (B, T), True on real tokens.
        wanted: (B, T) bool, True on the tokens whose log-prob is wanted; the first column never is.
        temperature: logits are divided by it, as when the tokens were sampled.
        with_entropy: fill the second result (costs one more pass over the logits).
        hidden: (B, T, D) trunk output, when the caller has it already.
        position_ids: (B, T) int64 for rows of several documents, whose first tokens are then never wanted.
        padded: the trunk is to see the batch as it is, (B, T), for hooks that know its places.

    Returns:
        log-probs (B, T) float32, 0 where not wanted; the distributions' entropy (B, T), likewise,
        detached (nats).
    """
    before = preceding(wanted)
    at = before.flatten().nonzero().squeeze(1)  # (N,), places in the flattened batch before wanted tokens
    targets = input_ids.flatten()
    if adjusts_logits(model):
        full = model(input_ids=input_ids, use_cache=False, **_reads(attention_mask, position_ids)).logits
        logits = full.flatten(0, 1).index_select(0, at)
        if temperature != 1.0:
            logits = logits.float() / temperature
        picked = chosen_logprobs(logits, targets[at + 1])
        spread = entropies(logits) if with_entropy else None
    else:
        inner = plain(model)
        if hidden is None and not padded and reads_flat(inner.base_model):
            flat = _flattened(input_ids, attention_mask, position_ids)
            own = before.flatten()[flat.origin].nonzero().squeeze(1)
            at = flat.origin[own]
            states = flat_states(inner.base_model, flat.input_ids, flat.position_ids, flat.layout, own)
        else:
            if hidden is None:
                hidden = hidden_states(model, input_ids, attention_mask, position_ids, padded=padded)
            states = hidden.flatten(0, 1).index_select(0, at)
        picked, spread = head_logprobs(
            inner.get_output_embeddings(),
            states,
            targets[at + 1],
            temperature=temperature,
            with_entropy=with_entropy,
        )
    nothing = torch.zeros(input_ids.numel(), dtype=torch.float32, device=input_ids.device)
    logprobs = nothing.index_copy(0, at + 1, picked.float())
    entropy = nothing if spread is None else nothing.index_copy(0, at + 1, spread.float())
    return logprobs.view(input_ids.shape), entropy.view(input_ids.shape)


def next_token_logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Logits after the last token of each row, (B, V), by the model's own forward pass on `inputs`; of a
    small head in float32, as `token_logprobs` has them."""
    inner = plain(model)
    head = inner.get_output_embeddings()
    if reads_in_float32(head, model.device) and not adjusts_logits(model):
        return read(head, inner.base_model(**inputs).last_hidden_state[:, -1])
    own: Tensor = model(**inputs, logits_to_keep=1).logits[:, -1]
    return own


def _flattened(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None) -> Flat:
    places = positions(attention_mask) if position_ids is None else position_ids
    return flatten(input_ids, attention_mask, places)
