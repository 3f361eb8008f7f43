"""Sequences of different lengths end to end, without padding: a trunk's layers see one row of tokens.

Norms, projections and feed-forward layers treat each token by itself, and need not know whose it is.
Attention alone does: there the tokens are spread into padded rows, causal attention is computed, and what it
gives is collected again. Where sequences begin alike, the tokens that they share can stand in the row once
and be spread into each of them, so that a tree (`prefloop.models.shared_prompt`) takes no mask of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefloop.data.batching import length_groups

NAME = "prefloop_ragged"
"""By which transformers knows this attention."""
GROUP_COST = 128
"""Tokens of a padded row whose attention takes as long as what a further group costs (small operations)."""


@dataclass(frozen=True)
class Rows:
    """Sequences of similar length as attention sees them, padded on the right to the longest.

    Attributes:
        first, last: the stretch of flat tokens that they are made of.
        count, width: rows and tokens of the padded form (B, W).
        tokens: (B * W,) int64, the token of the stretch in each place; on padding any of the row's, since
            nothing real looks at what stands there. None where the stretch is the padded form.
        places: (last - first,) int64, the place at which each token is a query. None likewise.
    """

    first: int
    last: int
    count: int
    width: int
    tokens: Tensor | None = None
    places: Tensor | None = None

    def spread(self, flat: Tensor) -> Tensor:
        """(N, H, D) -> (B, H, W, D)."""
        own = flat[self.first : self.last]
        if self.tokens is not None:
            own = own.index_select(0, self.tokens)
        return own.view(self.count, self.width, *own.shape[1:]).transpose(1, 2)

    def collect(self, padded: Tensor) -> Tensor:
        """(B, H, W, D) -> (last - first, H, D)."""
        rows = padded.transpose(1, 2).reshape(-1, padded.shape[1], padded.shape[3])
        return rows if self.places is None else rows.index_select(0, self.places)


def rows_of(first: int, lengths: Sequence[int]) -> Rows:
    """Sequences of `lengths` tokens that stand end to end from the token `first` on."""
    count, width, total = len(lengths), max(lengths), sum(lengths)
    if count * width == total:
        return Rows(first, first + total, count, width)
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length
    place = torch.arange(width)
    tokens = start.unsqueeze(1) + torch.minimum(place, length.unsqueeze(1) - 1)
    real = place < length.unsqueeze(1)
    return Rows(first, first + total, count, width, tokens.flatten(), real.flatten().nonzero().squeeze(1))


@dataclass(frozen=True)
class Flat:
    """The real tokens of a batch end to end, sequences of similar length side by side.

    Attributes:
        input_ids, position_ids: (N,) int64.
        origin: (N,) int64, where each token stands in the flattened batch (B * T).
        rows: who attends to whom.
    """

    input_ids: Tensor
    position_ids: Tensor
    origin: Tensor
    rows: Sequence[Rows]


def flatten(input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Flat:
    """Takes the padding out of a batch.

    Args:
        input_ids: (B, T) int64. attention_mask: (B, T), True on real tokens.
        position_ids: (B, T) int64; each 0 begins a sequence.
    """
    origin = attention_mask.flatten().nonzero().squeeze(1)
    places = position_ids.flatten()[origin]
    starts = (places == 0).nonzero().squeeze(1)
    lengths = torch.diff(starts, append=starts.new_tensor([len(origin)]))
    sizes: list[int] = lengths.tolist()
    groups = attention_groups(sizes)
    order = torch.tensor([i for group in groups for i in group])
    rows, first = [], 0
    for group in groups:
        rows.append(rows_of(first, [sizes[i] for i in group]))
        first = rows[-1].last
    length = lengths[order]
    # The tokens of each sequence in turn: its start, and 0, 1, 2 ... from there on.
    within = torch.arange(len(origin)) - (length.cumsum(0) - length).repeat_interleave(length)
    moved = starts[order].repeat_interleave(length) + within
    origin = origin[moved]
    return Flat(input_ids.flatten()[origin], places[moved], origin, rows)


def attention_groups(lengths: Sequence[int]) -> list[list[int]]:
    """Sequences whose attention is computed together, shortest first."""
    return length_groups(lengths, "cpu", overhead=GROUP_COST)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    rows: Sequence[Rows],
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, in the form that transformers calls.

    Args:
        query: (1, H, N, D). key, value: (1, G, N, D), of which each serves H / G heads.

    Returns:
        (1, N, H, D).
    """
    flat = [states[0].transpose(0, 1) for states in (query, key, value)]
    grouped = query.shape[1] != key.shape[1]
    found = []
    for own in rows:
        padded = scaled_dot_product_attention(
            *(own.spread(states) for states in flat),
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=grouped,
        )
        found.append(own.collect(padded))
    return (torch.cat(found) if len(found) > 1 else found[0]).unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)


def flat_states(trunk: Any, flat: Flat) -> Tensor:
    """Last hidden states of a trunk that `reads_flat`: (N, D)."""
    with _attending(trunk):
        hidden: Tensor = trunk(
            input_ids=flat.input_ids.unsqueeze(0),
            position_ids=flat.position_ids.unsqueeze(0),
            use_cache=False,
            rows=flat.rows,
        ).last_hidden_state
    return hidden[0]


def recomputed(trunk: Any) -> AbstractContextManager[None]:
    """For a block of the trunk that is recomputed in the backward pass: as it was computed at this moment."""
    return _attending(trunk, trunk.config._attn_implementation)


@contextmanager
def _attending(trunk: Any, name: str = NAME) -> Iterator[None]:
    """Within it the trunk's layers call the attention `name`; for this module's transformers makes no mask."""
    before = trunk.config._attn_implementation
    trunk.config._attn_implementation = name
    try:
        yield
    finally:
        trunk.config._attn_implementation = before


_READS_FLAT: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""What was found out of each trunk."""


def reads_flat(trunk: Any) -> bool:
    """True for a trunk on a CPU that makes of sequences end to end what it makes of padded ones.

    What its configuration rules out is not tried: windows of attention, attention of its own. The rest is
    tried on a few tokens, once, since nothing else tells recurrences and biases by distance.
    """
    if trunk.device.type != "cpu":
        return False  # a GPU's kernels for this are unmeasured
    if trunk not in _READS_FLAT:
        _READS_FLAT[trunk] = _may_read_flat(trunk) and _does_read_flat(trunk)
    return _READS_FLAT[trunk]


def _may_read_flat(trunk: Any) -> bool:
    text = trunk.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    return (
        kinds == {"full_attention"}
        and not window
        and trunk.config._attn_implementation == "sdpa"
        and int(getattr(text, "vocab_size", 0)) >= 8
    )


@torch.no_grad()
def _does_read_flat(trunk: Any) -> bool:
    input_ids = torch.tensor([[1, 2, 3, 4, 5, 6], [4, 3, 2, 0, 0, 0]])
    real = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    places = torch.arange(6).expand(2, 6)
    training = trunk.training
    trunk.eval()
    try:
        flat = flatten(input_ids, real, places)
        found = flat_states(trunk, flat)
        expected = trunk(
            input_ids=input_ids, attention_mask=real.long(), position_ids=places, use_cache=False
        ).last_hidden_state
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError):
        return False  # it takes no such layout
    finally:
        trunk.train(training)
    expected = expected.flatten(0, 1)[flat.origin]
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
