"""What reads logits and scores of hidden states, in float32 where that costs little."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prefloop.models import heads
from prefloop.models.forward import next_token_logits, precision_context, token_logprobs
from prefloop.models.heads import is_small, read, reads_in_float32
from tests import tiny

CPU = torch.device("cpu")


def test_a_small_head_computes_in_float32_under_autocast_and_learns() -> None:
    torch.manual_seed(0)
    head, states = nn.Linear(16, 24, bias=False), torch.randn(5, 16, requires_grad=True)
    exact = head(states)
    rounded = states.detach().bfloat16()
    expected = head(rounded.float())
    with precision_context("bf16", "cpu"):
        assert torch.equal(read(head, states), exact)
        assert torch.equal(read(head, rounded), expected)
    read(head, states).sum().backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad, states.detach().sum(dim=0).expand(24, 16))


def test_a_large_head_and_one_of_bf16_compute_as_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    head, states = nn.Linear(16, 24), torch.randn(5, 16)
    assert is_small(head)
    assert not is_small(copy.deepcopy(head).bfloat16())
    assert not reads_in_float32(head, CPU)  # nothing computes in bf16
    assert not reads_in_float32(None, CPU)
    monkeypatch.setattr(heads, "SMALL", 16 * 24 + 23)
    with precision_context("bf16", "cpu"):
        assert not is_small(head)
        assert read(head, states).dtype == torch.bfloat16
    assert torch.equal(read(head, states), head(states))


def test_log_probs_in_bf16_are_nearer_to_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(tiny.tokenizer())
    with torch.no_grad():  # logits as wide as a trained model's
        model.get_output_embeddings().weight.mul_(40)
    ids = torch.randint(5, 40, (8, 12), generator=torch.Generator().manual_seed(0))
    real = torch.ones_like(ids, dtype=torch.bool)
    wanted = real.clone()
    wanted[:, 0] = False

    @torch.no_grad()
    def logprobs(precision: str) -> torch.Tensor:
        with precision_context(precision, "cpu"):
            return token_logprobs(model, ids, real, wanted)[0]

    exact = logprobs("fp32")
    own = float((logprobs("bf16") - exact).abs().mean())
    monkeypatch.setattr(heads, "SMALL", 0)
    whole = float((logprobs("bf16") - exact).abs().mean())
    assert 0 < own < 0.8 * whole


def test_the_next_token_is_read_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(tiny.tokenizer())
    ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model(input_ids=ids, logits_to_keep=1).logits[:, -1]
        assert torch.equal(next_token_logits(model, input_ids=ids), exact)
        with precision_context("bf16", "cpu"):
            found = next_token_logits(model, input_ids=ids)
            own = model(input_ids=ids, logits_to_keep=1).logits[:, -1]
            monkeypatch.setattr(heads, "SMALL", 0)
            assert torch.equal(next_token_logits(model, input_ids=ids), own)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)
