"""Log-probs of chosen tokens: the same bits a few rows at a time as of all rows at once."""

from __future__ import annotations

import math

import pytest
import torch

from prefloop.models import chosen_logprobs as module
from prefloop.models.chosen_logprobs import chosen_logprobs, entropies


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven logits are a table too large to be taken at once, and two rows of five go together."""
    monkeypatch.setattr(module, "WHOLE", 6)
    monkeypatch.setattr(module, "AT_ONCE", {"cpu": 10})


def test_log_probs_and_entropies_by_hand(in_parts: None) -> None:
    """Logits 0, ln 2, ln 5 are the chances 1/8, 2/8, 5/8."""
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]] * 3)
    picked = chosen_logprobs(logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(picked, torch.tensor([1 / 8, 2 / 8, 5 / 8]).log())
    expected = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    torch.testing.assert_close(entropies(logits), torch.full((3,), expected))


def test_the_gradient_by_hand(in_parts: None) -> None:
    """Of log p(token): 1 at the token less the chances."""
    logits = torch.tensor([[0.0, math.log(2), math.log(5)]] * 3, requires_grad=True)
    (2 * chosen_logprobs(logits * 1, torch.tensor([0, 1, 2]))).sum().backward()
    chances = torch.tensor([1 / 8, 2 / 8, 5 / 8])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, 2 * (torch.eye(3) - chances))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 7), (7, 5), (40, 33)])
def test_rows_in_parts_give_the_same_bits(
    kind: torch.dtype, rows: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    drawn = (3 * torch.randn(rows, vocabulary)).to(kind)
    tokens, upstream = torch.randint(vocabulary, (rows,)), torch.randn(rows)

    def results() -> tuple[torch.Tensor, ...]:
        logits = drawn.clone().requires_grad_()
        picked = chosen_logprobs(logits * 1, tokens)
        spread = entropies(logits)
        picked.backward(upstream.to(picked.dtype))
        assert logits.grad is not None
        return picked.detach(), spread, logits.grad

    whole = results()
    monkeypatch.setattr(module, "WHOLE", 0)
    monkeypatch.setattr(module, "AT_ONCE", {"cpu": 3 * vocabulary})
    for one, other in zip(whole, results(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_a_second_backward_pass_is_refused(in_parts: None) -> None:
    """The logits are gone: it would give a wrong gradient without a word."""
    logits = torch.randn(4, 5, requires_grad=True)
    picked = chosen_logprobs(logits * 1, torch.zeros(4, dtype=torch.long)).sum()
    picked.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"backward\(\) runs once"):
        picked.backward()


def test_no_row_has_no_log_prob(in_parts: None) -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    assert chosen_logprobs(torch.zeros(0, 5), nothing).shape == (0,)
    assert entropies(torch.zeros(0, 5)).shape == (0,)
