"""Dropout of adapters whose masks are a function of what is dropped, not of the pass that drops it.

A mask's bits are drawn for (key of the training and the step, layer, the row's tokens, place in the row,
feature) by SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), a
counter-based generator. Padding, packing, order, micro-batches and processes therefore leave them as they
are; a row's tokens stand for the row, so that two equal rows of a step get equal masks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.errors import ConfigError, TrainingError
from prefloop.training.noise import Key, seed_of

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as int64; products and sums wrap, as the generator wants it
_FACTORS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))
_LEVELS = 2**16
"""A feature's bits are 16: the probability is rounded to a multiple of 1 / 2^16."""


def mixed(bits: Tensor) -> Tensor:
    """SplitMix64's output function, a bijection: int64 of any shape, read as 64 bits."""
    for shift, factor in _FACTORS:
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    # torch shifts a signed number's sign in from the left.
    return (bits >> by) & ((1 << (64 - by)) - 1)


def token_keys(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor:
    """A key for each token, from all tokens of its row and its place in it: (B, T) int64.

    Args:
        input_ids: (B, T) int64.
        attention_mask: (B, T), True (or 1) on real tokens; those alone count. None where `position_ids` tell
            the documents of a row apart (`prefloop.data.batching.pack`), each of which has keys of its own.
        position_ids: (B, T) int64; places are counted from the first real token where there is a mask.
    """
    if attention_mask is not None:
        real = attention_mask.bool()
        places = real.long().cumsum(dim=-1) - 1
        starts = torch.zeros_like(real)
    else:
        real = torch.ones_like(input_ids, dtype=torch.bool)
        every = torch.arange(input_ids.shape[1], device=input_ids.device)
        places = (every if position_ids is None else position_ids).expand_as(input_ids)
        starts = places == 0
    each = mixed(input_ids + places * _GOLDEN) * real
    # Documents are numbered through all rows; the first of a row may begin before its first restart.
    rows = torch.arange(len(input_ids), device=input_ids.device).unsqueeze(1)
    document = (rows * (input_ids.shape[1] + 1) + starts.long().cumsum(dim=-1)).flatten()
    sums = each.new_zeros(len(input_ids) * (input_ids.shape[1] + 1))
    whole = sums.index_add(0, document, each.flatten())[document].view_as(each)
    return mixed(mixed(whole) + places * _GOLDEN)


@dataclass
class Pass:
    """What the masks of a forward pass follow from.

    Attributes:
        step: a number for the training and the step. tokens: (B, T) int64, see `token_keys`.
    """

    step: int
    tokens: Tensor


class Masks:
    """What all dropouts of a model share: the step they draw for, and the pass they are in."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.current: Pass | None = None

    def enter(self, trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook before the trunk's forward: takes the keys of the tokens it is given."""
        if not trunk.training or self.step is None:
            return
        given = inspect.signature(trunk.forward).bind_partial(*args, **kwargs).arguments
        given = {**given.get("kwargs", {}), **given}
        mask = given.get("attention_mask")
        if given.get("input_ids") is None or (mask is not None and mask.ndim != 2):
            raise TrainingError(
                "lora.dropout draws by the tokens of a row, and a pass is given them in another layout",
                "set lora.dropout to 0",
            )
        with torch.no_grad():
            keys = token_keys(given["input_ids"], mask, given.get("position_ids"))
        self.current = Pass(self.step, keys)

    @contextmanager
    def during(self, kept: Pass | None) -> Iterator[None]:
        """Within it a pass is `kept`."""
        before, self.current = self.current, kept
        try:
            yield
        finally:
            self.current = before


class KeyedDropout(nn.Module):
    """Dropout before an adapter: (..., D) -> the same shape, kept features scaled by 1 / (1 - p).

    Args:
        p: probability of a feature to be dropped, rounded to a multiple of 1 / 2^16.
        name: of the layer. masks: shared with the model's others.
    """

    def __init__(self, p: float, name: str, masks: Masks) -> None:
        super().__init__()
        self.dropped = round(p * _LEVELS)
        self.name, self.masks = name, masks
        self.layer = seed_of((name,))

    def extra_repr(self) -> str:
        return f"p={self.dropped / _LEVELS:g}"

    def forward(self, inputs: Tensor) -> Tensor:
        """Raises TrainingError: no step was begun, or the layer is not given one vector a token."""
        if not self.training or not self.dropped:
            return inputs
        if self.dropped == _LEVELS:
            return torch.zeros_like(inputs)
        return torch.where(self.kept(inputs), inputs * (_LEVELS / (_LEVELS - self.dropped)), 0.0)

    @torch.no_grad()
    def kept(self, inputs: Tensor) -> Tensor:
        """The mask, True on features that are kept: (..., D) bool."""
        tokens, width = self._keys(inputs), inputs.shape[-1]
        start = mixed(tokens ^ seed_of((self._pass().step, self.layer))).unsqueeze(-1)
        counter = torch.arange(1, -(-width // 4) + 1, device=inputs.device)
        drawn = mixed(start + counter * _GOLDEN).view(torch.int16)[..., :width]  # four features a draw
        return drawn >= self.dropped - _LEVELS // 2

    def _pass(self) -> Pass:
        if self.masks.current is None:
            raise TrainingError(
                f"{self.name} is to drop features, but no step was begun",
                "call prefloop.models.adapter_dropout.begin_step before a step's passes, or model.eval()",
            )
        return self.masks.current

    def _keys(self, inputs: Tensor) -> Tensor:
        """The key of each vector of `inputs`."""
        tokens, shape = self._pass().tokens, inputs.shape[:-1]
        if shape.numel() == tokens.numel():
            return tokens.reshape(shape)  # a layer may see rows end to end
        if shape == tokens.shape[:1]:
            return tokens[:, 0]  # an encoder's pooler sees the first token of each row
        raise TrainingError(
            f"lora.dropout: {self.name} is not given one vector a token, but {tuple(shape)} of "
            f"{tuple(tokens.shape)} tokens",
            "leave the layer out of lora.targets, or set lora.dropout to 0",
        )


def key_dropout(model: Any) -> None:
    """Puts a `KeyedDropout` in the place of each dropout of a model's adapters, as peft attached them.

    Raises:
        ConfigError: the output layer has an adapter: it sees some tokens of a pass, not all.
    """
    masks = Masks()
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and ".lora_dropout." in name
    ]
    inner = model.get_base_model()
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is not None and any(module in set(head.modules()) for _, module in found):
        raise ConfigError(
            "lora.targets names the output layer, which lora.dropout above 0 does not work with",
            "leave it out of lora.targets, or set lora.dropout to 0",
        )
    for name, module in found:
        parent, _, own = name.rpartition(".")
        model.get_submodule(parent)[own] = KeyedDropout(module.p, name, masks)
    if found:
        inner.base_model.register_forward_pre_hook(masks.enter, with_kwargs=True)


def begin_step(model: nn.Module, key: Key) -> None:
    """From now on the masks of a model's adapters are those of `key`: the training's and the step's."""
    if masks := _masks(model):
        masks.step, masks.current = seed_of(key), None


def recomputed(model: nn.Module) -> AbstractContextManager[None]:
    """For a block that is recomputed in the backward pass, when other passes may have come after: it draws
    what it draws at this moment."""
    masks = _masks(model)
    return masks.during(masks.current) if masks else nullcontext()


def _masks(model: nn.Module) -> Masks | None:
    """What the model's dropouts share; None without any."""
    return next((module.masks for module in model.modules() if isinstance(module, KeyedDropout)), None)
