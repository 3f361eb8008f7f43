"""Joined projections and rotation of few passes, against a model's own attention."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.llama import modeling_llama

from prefloop.models import ragged
from prefloop.models.forward import token_logprobs
from prefloop.models.quick_attention import has_the_parts, rotated
from prefloop.models.ragged import can_be_quick, reads_flat
from tests import tiny

BATCH = torch.tensor([[3, 9, 4, 17, 5, 8, 2], [6, 2, 11, 0, 0, 0, 0], [12, 7, 7, 1, 0, 0, 0]])
REAL = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 4 + [False] * 3])
WANTED = torch.tensor(
    [[False] + [True] * 6, [False, True, True] + [False] * 4, [False] + [True] * 3 + [False] * 3]
)


@contextmanager
def own() -> Iterator[None]:
    with mock.patch.object(ragged, "can_be_quick", return_value=False):
        yield


def learned(model: Any) -> list[Tensor]:
    """Log-probs, and the gradients of their sum."""
    logprobs, _ = token_logprobs(model, BATCH, REAL, WANTED)
    logprobs.sum().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [logprobs.detach(), *gradients]


def test_a_turn_is_that_of_the_plane() -> None:
    """By 30 and 90 degrees: (1, 0) and (2, 1)."""
    angles = torch.tensor([[torch.pi / 6, torch.pi / 2] * 2], dtype=torch.float64)
    x = torch.tensor([[[1.0, 2.0, 0.0, 1.0]]], dtype=torch.float64)
    expected = torch.tensor([[[3**0.5 / 2, -1.0, 0.5, 2.0]]], dtype=torch.float64)
    torch.testing.assert_close(rotated(x, angles.cos(), angles.sin()), expected)


def test_a_turn_is_transformers_own_and_its_gradient_the_true_one() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 5, 3, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(1, 5, 8, generator=generator, dtype=torch.float64)
    cos, sin = angles.cos(), angles.sin()  # a half's of their own: no formula of the other's
    theirs, _ = modeling_llama.apply_rotary_pos_emb(x, x, cos, sin, unsqueeze_dim=2)
    turns = cos.unsqueeze(2), sin.unsqueeze(2)
    torch.testing.assert_close(rotated(x, *turns), theirs)
    assert torch.autograd.gradcheck(lambda x: rotated(x, *turns), x)


def test_a_turn_in_bf16_is_computed_in_float32_and_rounded_once() -> None:
    x = torch.randn(1, 9, 2, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    angles = torch.linspace(0.0, 6.0, 9 * 16).view(1, 9, 1, 16)
    found = rotated(x, angles.cos(), angles.sin())
    assert found.dtype == torch.bfloat16
    exact = rotated(x.double(), angles.double().cos(), angles.double().sin())
    assert (found.double() - exact).abs().max() <= 2**-8 * exact.abs().max()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_a_step_is_that_of_the_models_own_attention(kind: str) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind).double().train()
    assert reads_flat(model.base_model)
    assert can_be_quick(model.base_model)
    found = learned(model)
    with own():
        expected = learned(model)
    assert len(found) == len(expected) == 1 + len(list(model.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_in_bf16_it_is_as_near_to_float32(kind: str) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind)
    exact = learned(copy.deepcopy(model).double())[0]

    def off() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            return float((learned(model)[0] - exact).abs().mean())

    quick = off()
    with own():
        assert quick <= 1.5 * off() + 1e-4


def test_the_way_is_gone_in_a_step() -> None:
    """Three projections of a layer are one product there, and no call of the layers."""
    model = tiny.model(tiny.tokenizer())
    learned(model)  # what is tried once is tried

    def calls() -> int:
        with mock.patch.object(nn.Linear, "forward", autospec=True, side_effect=nn.Linear.forward) as linear:
            learned(model)
        return int(linear.call_count)

    quick = calls()
    with own():
        assert calls() == quick + 3 * len(model.base_model.layers)


def test_a_model_that_turns_otherwise_keeps_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        def turn(x: Tensor) -> Tensor:
            other = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
            return x * cos.unsqueeze(1) + other * sin.unsqueeze(1)

        return turn(q), turn(k)

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", interleaved)
    model = tiny.model(tiny.tokenizer())
    assert has_the_parts(model.base_model)
    assert not can_be_quick(model.base_model)


def test_adapters_hooks_and_recomputation_keep_a_models_own_way() -> None:
    def fresh() -> Any:
        return tiny.model(tiny.tokenizer())

    adapted = get_peft_model(fresh(), LoraConfig(target_modules=["q_proj"]))
    assert not has_the_parts(adapted.get_base_model().base_model)
    hooked = fresh()
    hooked.base_model.layers[0].self_attn.k_proj.register_forward_hook(lambda *_: None)
    assert not has_the_parts(hooked.base_model)
    recomputing = fresh().train()
    recomputing.gradient_checkpointing_enable()
    assert not has_the_parts(recomputing.base_model)
    assert not has_the_parts(nn.Linear(2, 2))


def test_a_copy_has_attention_of_its_own() -> None:
    model = tiny.model(tiny.tokenizer()).double()
    learned(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for block in other.base_model.layers:
            block.self_attn.v_proj.weight.zero_()
    assert other.base_model.layers[0].self_attn.forward.__self__ is other.base_model.layers[0].self_attn
    assert not torch.equal(learned(model)[0], learned(other)[0])
    with own():
        torch.testing.assert_close(learned(other)[0], learned(copy.deepcopy(other))[0])
