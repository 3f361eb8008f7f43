"""One further token a row on a CPU: the forward pass of a common decoder, written out in few operations.

A step of decoding is small, so that what calling a module or an operation costs, beside what it computes, is
most of it for a small model. Projections of the same input are one product here, and queries and keys are
normed and turned as one. torch's attention goes through a row and a head at a time, which for one query
costs more than its products: batched products take its place. They read the cache's buffers whole, whatever
is filled of them, since memory is read fastest in one piece; a bias hides the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm
from transformers import PreTrainedModel

from prefloop.models.forward import adjusts_logits
from prefloop.models.heads import is_small
from prefloop.models.ragged import alike, attends_plainly
from prefloop.rollout.kv_cache import RoomyLayer, roomy_cache

STEP = 16
"""Tokens by which the cache's buffers grow: few are read in vain, and few of the reads make a longer copy."""
LARGEST = 2**26
"""Weights of a model, beyond which its products are all that counts, and copies of its weights too large."""


@dataclass(frozen=True)
class Block:
    """A layer's weights: those of one input joined, the others as they are.

    Attributes:
        read: (H D + 2 G D, width), queries, keys and values; queries are scaled unless `turned` scales them.
        turned: (H + G, D), norms of queries and keys; None without them.
        raised: (2 inner, width), the gate and what it opens.
        written, lowered: back to the width. Each with its bias, or None.
    """

    first_norm: nn.Module
    read: tuple[Tensor, Tensor | None]
    turned: Tensor | None
    eps: float
    written: tuple[Tensor, Tensor | None]
    second_norm: nn.Module
    raised: tuple[Tensor, Tensor | None]
    lowered: tuple[Tensor, Tensor | None]
    act: nn.Module
    heads: int
    groups: int


class Decoder:
    """What a model that `decodes` makes of one further token a row.

    It holds copies of some weights, and is of no use once they have changed.

    Args:
        precision: "fp32" leaves weights as they are; for "bf16", in whose context it is to be called, those
            of products are cast once instead of at every call.
    """

    def __init__(self, model: Any, precision: str = "fp32") -> None:
        trunk, head = model.base_model, model.get_output_embeddings()
        dtype = torch.bfloat16 if precision == "bf16" else head.weight.dtype
        self.embedding, self.rotary, self.norm = trunk.embed_tokens, trunk.rotary_emb, trunk.norm
        self.exact = precision == "bf16" and is_small(head)  # as prefloop.models.heads reads it
        self.head = _joined(head.weight.dtype if self.exact else dtype, (head, 1.0))
        self.blocks = [_block(layer, dtype) for layer in trunk.layers]

    def __call__(self, ids: Tensor, places: Tensor, layers: Sequence[RoomyLayer], bias: Tensor) -> Tensor:
        """Logits after a token.

        Args:
            ids, places: (B, 1) int64, the token and its position.
            layers: of the cache, to which the token's keys and values are added.
            bias: (B, T) float, 0 on tokens that are looked at, the new one among them, -inf elsewhere; T is
                at least the room of `layers`.

        Returns:
            (B, V).
        """
        hidden = self.embedding(ids[:, 0])  # (B, width)
        cosine, sine = self.rotary(hidden, places)  # (B, 1, D)
        half = cosine.shape[-1] // 2
        sine = torch.cat([-sine[..., :half], sine[..., half:]], dim=-1)
        for block, layer in zip(self.blocks, layers, strict=True):
            hidden = _through(block, layer, hidden, cosine, sine, bias)
        if not self.exact:
            return linear(self.norm(hidden), *self.head)
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(self.norm(hidden).float(), *self.head)


def _through(
    block: Block, layer: RoomyLayer, hidden: Tensor, cosine: Tensor, sine: Tensor, bias: Tensor
) -> Tensor:
    """A block's outcome: (B, width) -> (B, width). Half of `sine` (B, 1, D) is negated for `roll`."""
    rows, heads, groups = len(hidden), block.heads, block.groups
    states = linear(block.first_norm(hidden), *block.read).view(rows, heads + 2 * groups, -1)
    turned = states[:, : heads + groups]
    width = states.shape[-1]
    if block.turned is not None:
        turned = rms_norm(turned, (width,), None, block.eps) * block.turned
    turned = turned * cosine + turned.roll(width // 2, dims=-1) * sine
    keys, values = layer.add(turned[:, heads:], states[:, heads + groups :])
    room = keys.shape[2]
    asked = turned[:, :heads].reshape(rows * groups, heads // groups, width).to(keys.dtype)
    scores = torch.bmm(asked, keys.flatten(0, 1).transpose(1, 2)).view(rows, heads, room)
    weights = torch.softmax(scores + bias[:, None, :room], dim=-1).to(values.dtype)
    found = torch.bmm(weights.view(rows * groups, heads // groups, room), values.flatten(0, 1))
    hidden = hidden + linear(found.view(rows, heads * width), *block.written)
    gate, opened = linear(block.second_norm(hidden), *block.raised).chunk(2, dim=-1)
    return hidden + linear(block.act(gate) * opened, *block.lowered)


def _block(layer: Any, dtype: torch.dtype) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    width = attention.head_dim
    heads, groups = (p.weight.shape[0] // width for p in (attention.q_proj, attention.k_proj))
    turned, eps, scale = None, 0.0, attention.scaling
    if hasattr(attention, "q_norm"):
        norms = [(attention.q_norm.weight * scale, heads), (attention.k_norm.weight, groups)]
        turned = torch.cat([weight.expand(count, width) for weight, count in norms])
        eps, scale = attention.q_norm.variance_epsilon, 1.0
    return Block(
        layer.input_layernorm,
        _joined(dtype, (attention.q_proj, scale), (attention.k_proj, 1.0), (attention.v_proj, 1.0)),
        turned,
        eps,
        _joined(dtype, (attention.o_proj, 1.0)),
        layer.post_attention_layernorm,
        _joined(dtype, (mlp.gate_proj, 1.0), (mlp.up_proj, 1.0)),
        _joined(dtype, (mlp.down_proj, 1.0)),
        mlp.act_fn,
        heads,
        groups,
    )


def _joined(dtype: torch.dtype, *projections: tuple[Any, float]) -> tuple[Tensor, Tensor | None]:
    """The weights and biases of projections of one input, each with a factor; a single one's as they are."""
    for projection, _ in projections:
        if type(projection) is not nn.Linear:
            raise TypeError(f"{type(projection).__name__} is more than a product")
    weights = [_scaled(projection.weight, factor).to(dtype) for projection, factor in projections]
    biases = [_scaled(p.bias, factor).to(dtype) for p, factor in projections if p.bias is not None]
    return _end_to_end(weights), _end_to_end(biases) if biases else None


def _scaled(weight: Tensor, factor: float) -> Tensor:
    return weight if factor == 1.0 else weight * factor


def _end_to_end(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def bias_of(real: Tensor, room: int) -> Tensor:
    """What hides padding and tokens to come: (B, T) bool or int, of a prompt -> (B, T + room) float32."""
    coming = torch.zeros((len(real), room), dtype=torch.bool, device=real.device)
    hidden = ~torch.cat([real.bool(), coming], dim=1)
    return torch.zeros(hidden.shape, device=real.device).masked_fill(hidden, -torch.inf)


_DECODES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""What was found out of each model."""


def decodes(model: PreTrainedModel) -> bool:
    """True for a small model on a CPU of which `Decoder` makes what the model's own forward pass does.

    What its configuration rules out is not tried. The rest is, once, since nothing else tells how a block
    adds up; an adapter, whose projections are more than a product, is found out then, too.
    """
    if model.device.type != "cpu":
        return False
    if model not in _DECODES:
        size = sum(parameter.numel() for parameter in model.parameters())
        _DECODES[model] = (
            size <= LARGEST and attends_plainly(model) and not adjusts_logits(model) and _does_decode(model)
        )
    return _DECODES[model]


def _does_decode(model: PreTrainedModel) -> bool:
    ids = torch.tensor([[1, 2, 3, 4, 7, 5], [0, 0, 5, 6, 1, 3]])
    real = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    places = (real.cumsum(dim=-1) - 1).clamp(min=0)

    def logits(first: int) -> Tensor:
        """After the last token, of which those from `first` on are decoded one by one."""
        cache = roomy_cache(model, STEP)
        found: Tensor = model(
            input_ids=ids[:, :first],
            attention_mask=real[:, :first],
            position_ids=places[:, :first],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        bias = bias_of(real[:, :first], STEP)
        for place in range(first, ids.shape[1]):
            bias[:, place] = 0.0
            token, at = ids[:, place : place + 1], places[:, place : place + 1]
            found = Decoder(model)(token, at, cache.layers, bias)  # type: ignore[arg-type]
        return found

    return alike(model, lambda: logits(4), lambda: logits(ids.shape[1]))
