"""Sequences of different lengths end to end, without padding: a trunk's layers see one row of tokens.

Norms, projections and feed-forward layers treat each token by itself, and need not know whose it is.
Attention alone does: there the tokens are spread into padded rows, causal attention is computed, and what it
gives is collected again. Where sequences begin alike, the tokens that they share can stand in the row once
and be spread into each of them, so that a tree (`prefloop.models.shared_prompt`) takes no mask of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefloop.models.causal_products import causal_attention
from prefloop.models.last_block import is_plain, narrowed
from prefloop.models.layout import Layout, layout_of
from prefloop.models.quick_attention import has_the_parts, quickly

NAME = "prefloop_ragged"
"""By which transformers knows this attention."""
STEADY = 64
"""In bf16 tokens come in multiples of this. For each new shape of a product machine code is made, which takes
as long as a small product does, and stays in memory; a shape of one step's own is never asked for again."""


@dataclass(frozen=True)
class Flat:
    """The real tokens of a batch end to end.

    Attributes:
        input_ids, position_ids: (N,) int64.
        origin: (N,) int64, where each token stands in the flattened batch (B * T).
        layout: who attends to whom.
    """

    input_ids: Tensor
    position_ids: Tensor
    origin: Tensor
    layout: Layout


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
    layout = layout_of(starts.tolist(), lengths.tolist(), steady=torch.is_autocast_enabled("cpu"))
    return Flat(input_ids.flatten()[origin], places, origin, layout)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sequence, in the form that transformers calls.

    Args:
        query: (1, H, N, D). key, value: (1, G, N, D), of which each serves H / G heads.

    Returns:
        (1, N, H, D); 0 for tokens that do not ask, where the layout says which do.
    """
    if not torch.is_autocast_enabled("cpu"):
        return _attended(layout, query, key, value, scaling, dropout), None
    with torch.autocast("cpu", enabled=False):
        if layout.asked is None and not dropout:
            scale = query.shape[-1] ** -0.5 if scaling is None else scaling
            query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
            return causal_attention(query, key, value, layout, scale), None
        query, key, value = query.float(), key.float(), value.float()
        return _attended(layout, query, key, value, scaling, dropout), None


def _attended(
    layout: Layout, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    how: dict[str, Any] = {
        "dropout_p": dropout,
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    asking, *seen = (states[0].transpose(0, 1) for states in (query, key, value))
    keys, values = map(layout.spread, seen)
    if layout.asked is None:
        found = [
            scaled_dot_product_attention(q, k, v, is_causal=True, **how)
            for q, k, v in zip(layout.spread(asking), keys, values, strict=True)
        ]
        return layout.collect(found).unsqueeze(0)
    found = [
        scaled_dot_product_attention(q, k, v, attn_mask=mask, **how)
        for (q, mask), k, v in zip(layout.asked.spread(asking), keys, values, strict=True)
    ]
    return layout.asked.collect(found, len(asking)).unsqueeze(0)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)


def flat_states(
    trunk: Any, input_ids: Tensor, position_ids: Tensor, layout: Layout, wanted: Tensor
) -> Tensor:
    """Last hidden states of a trunk that `reads_flat`: (N,) tokens and positions -> (n, D).

    Args:
        wanted: (n,) int64, the tokens whose states are wanted, in any order.
    """
    count = len(wanted)
    if torch.is_autocast_enabled("cpu"):
        further = -len(input_ids) % STEADY  # tokens that nothing attends to
        input_ids, position_ids = (pad(ids, (0, further)) for ids in (input_ids, position_ids))
        layout = layout.lengthened(further)
        wanted = pad(wanted, (0, -count % STEADY))
    if len(wanted) < len(input_ids) and narrows(trunk):
        with narrowed(trunk, wanted, layout=layout.where_asked(wanted[:count])):
            return _states(trunk, input_ids, position_ids, layout)[:count]
    return _states(trunk, input_ids, position_ids, layout).index_select(0, wanted)[:count]


def _states(trunk: Any, input_ids: Tensor, position_ids: Tensor, layout: Layout) -> Tensor:
    with attending(trunk), quickly(trunk) if can_be_quick(trunk) else nullcontext():
        hidden: Tensor = trunk(
            input_ids=input_ids.unsqueeze(0),
            position_ids=position_ids.unsqueeze(0),
            use_cache=False,
            layout=layout,
        ).last_hidden_state
    return hidden[0]


def recomputed(trunk: Any) -> AbstractContextManager[None]:
    """For a block of the trunk that is recomputed in the backward pass: as it was computed at this moment."""
    return attending(trunk, trunk.config._attn_implementation)


@contextmanager
def attending(trunk: Any, name: str = NAME) -> Iterator[None]:
    """Within it the trunk's layers call the attention `name`; for `NAME` transformers makes no mask."""
    before = trunk.config._attn_implementation
    trunk.config._attn_implementation = name
    try:
        yield
    finally:
        trunk.config._attn_implementation = before


_TRIED: WeakKeyDictionary[nn.Module, dict[Callable[[Any], bool], bool]] = WeakKeyDictionary()
"""What was found out of each trunk."""


def _tried(trial: Callable[[Any], bool], trunk: Any) -> bool:
    """What a trial of a trunk comes to; it is made once."""
    found = _TRIED.setdefault(trunk, {})
    if trial not in found:
        found[trial] = trial(trunk)
    return found[trial]


def reads_flat(trunk: Any) -> bool:
    """True for a trunk on a CPU that makes of sequences end to end what it makes of padded ones.

    What its configuration rules out is not tried: windows of attention, attention of its own. The rest is
    tried on a few tokens, once, since nothing else tells recurrences and biases by distance.
    """
    if trunk.device.type != "cpu":
        return False  # a GPU's kernels for this are unmeasured
    if any(hasattr(parameter, "placements") for parameter in trunk.parameters()):
        return False  # sharded: its processes have to make the same passes, the trial among them
    return _tried(_does_read_flat, trunk)


def attends_plainly(model: Any) -> bool:
    """True where a configuration speaks of full attention by torch's own function, and of enough tokens to
    try a layout on."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    return (
        kinds == {"full_attention"}
        and not window
        and text._attn_implementation == "sdpa"
        and int(getattr(text, "vocab_size", 0)) >= 8
    )


def narrows(trunk: Any) -> bool:
    """True for a trunk that `reads_flat` and whose last block can be left out where nothing is wanted."""
    return is_plain(trunk) and _tried(_does_narrow, trunk)


def can_be_quick(trunk: Any) -> bool:
    """True for a trunk whose attention gives the same `quickly`."""
    return has_the_parts(trunk) and _tried(_does_quicken, trunk)


_ROWS = torch.tensor([[1, 2, 3, 4, 5, 6], [4, 3, 2, 0, 0, 0]])
_REAL = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
_PLACES = torch.arange(6).expand(2, 6)


def _does_read_flat(trunk: Any) -> bool:
    if not attends_plainly(trunk):
        return False
    flat = flatten(_ROWS, _REAL, _PLACES)

    def padded() -> Tensor:
        states: Tensor = trunk(
            input_ids=_ROWS, attention_mask=_REAL.long(), position_ids=_PLACES, use_cache=False
        ).last_hidden_state
        return states.flatten(0, 1)[flat.origin]

    return alike(trunk, lambda: _states(trunk, flat.input_ids, flat.position_ids, flat.layout), padded)


def _does_narrow(trunk: Any) -> bool:
    flat = flatten(_ROWS, _REAL, _PLACES)

    def whole() -> Tensor:
        return _states(trunk, flat.input_ids, flat.position_ids, flat.layout)

    def narrow(wanted: Tensor) -> Tensor:
        with narrowed(trunk, wanted, layout=flat.layout.where_asked(wanted)):
            return whole()

    def chosen(wanted: Tensor) -> Tensor:
        return whole()[wanted]

    some, ends = torch.tensor([1, 5, 8]), torch.tensor([5, 8])
    return all(alike(trunk, partial(narrow, few), partial(chosen, few)) for few in (some, ends))


def _does_quicken(trunk: Any) -> bool:
    flat = flatten(_ROWS, _REAL, _PLACES)
    # Of some size, so that it matters who attends to whom, also before a model has learned.
    weight = trunk.layers[0].self_attn.q_proj.weight
    some = torch.randn(1, len(flat.origin), weight.shape[1], generator=torch.Generator().manual_seed(0))
    states = 10.0 * some.to(weight.dtype)

    def attended() -> Tensor:
        turns = trunk.rotary_emb(states, flat.position_ids.unsqueeze(0))
        told: dict[str, Any] = {"position_embeddings": turns, "attention_mask": None, "layout": flat.layout}
        with attending(trunk):
            return torch.stack([b.self_attn(hidden_states=states, **told)[0] for b in trunk.layers])

    def quick() -> Tensor:
        with quickly(trunk):
            return attended()

    return alike(trunk, quick, attended)


@torch.no_grad()
def alike(model: Any, one: Callable[[], Tensor], other: Callable[[], Tensor]) -> bool:
    """True where two ways of a model's give the same, without dropout, in its own precision; False where one
    cannot be gone."""
    training = model.training
    model.eval()
    try:
        with torch.autocast(model.device.type, enabled=False):
            found, expected = one(), other()
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError):
        return False
    finally:
        model.train(training)
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    )
