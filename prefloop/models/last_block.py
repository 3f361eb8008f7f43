"""A trunk's last block, computed where its result is wanted alone.

Every token's keys and values serve the tokens behind it, up to the last block's attention. What comes after
that serves no other token: of a reward model the last token's state is read, of a language model those before
the completion's tokens. The feed-forward layer, most of a block, is left out everywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

from torch import Tensor, nn

_PARTS = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
"""Of a block that adds attention to its input, and the feed-forward layer to that."""

_Narrowed = tuple[Any, Tensor, dict[str, Any]]

_NARROWED: ContextVar[_Narrowed | None] = ContextVar("narrowed", default=None)
"""The block that gives some tokens alone, these, and what its attention is told, in this thread's pass."""


@contextmanager
def narrowed(trunk: Any, wanted: Tensor, **told: Any) -> Iterator[None]:
    """Within it the trunk's last block gives the `wanted` tokens of its (1, N, D) alone, in this thread.

    Args:
        trunk: one that `is_plain`. wanted: (n,) int64.
        told: what its attention is told instead of what the others are.
    """
    block = trunk.layers[-1]
    block.forward = MethodType(_forward, block)  # it stays; deepcopy binds a method to the copy
    token = _NARROWED.set((block, wanted, told))
    try:
        yield
    finally:
        _NARROWED.reset(token)


def _forward(block: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
    """What stands in for a block's own forward, which it calls where nothing is `narrowed`."""
    found = _NARROWED.get()
    if found is None or found[0] is not block:
        return type(block).forward(block, hidden_states, *args, **kwargs)
    _, wanted, told = found
    normed = block.input_layernorm(hidden_states)
    attended, _ = block.self_attn(hidden_states=normed, **(kwargs | told))
    chosen = (hidden_states + attended).index_select(1, wanted)
    return chosen + block.mlp(block.post_attention_layernorm(chosen))


def is_plain(trunk: Any) -> bool:
    """True where the last block has the parts that `narrowed` goes through, and nothing counts on the rest.

    A block that is computed again for the backward pass has to be the block that was computed first, and what
    hooks into a trunk (an adapter's dropout does) knows its tokens by their places.
    """
    blocks = getattr(trunk, "layers", None)
    return (
        isinstance(blocks, nn.ModuleList)
        and len(blocks) > 0
        and all(isinstance(getattr(blocks[-1], name, None), nn.Module) for name in _PARTS)
        and getattr(vars(blocks[-1]).get("forward"), "__func__", _forward) is _forward
        and not trunk._forward_pre_hooks
        and not getattr(blocks[-1], "gradient_checkpointing", False)
    )
