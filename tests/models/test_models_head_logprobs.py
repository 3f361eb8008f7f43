"""Log-probs right from hidden states, against an output layer, log-softmax and autograd."""

import math

import pytest
import torch
from torch import Tensor, nn

from prefloop.models import chosen_logprobs as table
from prefloop.models import head_logprobs as module
from prefloop.models.head_logprobs import head_logprobs

LOGITS = [0.0, math.log(2), math.log(5)]
"""Of chances 1/8, 2/8, 5/8."""


def head_of(
    size: int, vocabulary: int, *, bias: bool = False, kind: torch.dtype = torch.float32
) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(size, vocabulary, bias=bias).to(kind)


def plainly(
    head: nn.Linear, states: Tensor, tokens: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(head(states).double() / temperature, dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropy.detach()


def learned(head: nn.Linear, states: Tensor, picked: Tensor) -> list[Tensor]:
    upstream = torch.linspace(-1.0, 2.0, len(picked), dtype=picked.dtype)
    return list(torch.autograd.grad(picked, [states, *head.parameters()], upstream, retain_graph=True))


def test_log_probs_entropies_and_gradients_by_hand() -> None:
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(LOGITS).unsqueeze(1))
    states = torch.ones(3, 1, requires_grad=True)
    picked, entropy = head_logprobs(head, states, torch.tensor([0, 1, 2]), with_entropy=True)
    chances = torch.tensor([1 / 8, 2 / 8, 5 / 8])
    torch.testing.assert_close(picked, chances.log())
    assert entropy is not None
    torch.testing.assert_close(entropy, -(chances * chances.log()).sum().expand(3))
    assert not entropy.requires_grad
    picked[2].backward()
    # Of log p(2): z_2 by z_2 has 1 - 5/8; z itself changes by the weights.
    expected = torch.tensor([-1 / 8, -2 / 8, 3 / 8])
    assert head.weight.grad is not None
    assert states.grad is not None
    torch.testing.assert_close(head.weight.grad.squeeze(1), expected)
    slope = float((expected * torch.tensor(LOGITS)).sum())
    torch.testing.assert_close(states.grad.squeeze(1), torch.tensor([0.0, 0.0, slope]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_it_is_what_the_layer_and_log_softmax_give(kind: torch.dtype, bias: bool, temperature: float) -> None:
    head = head_of(6, 33, bias=bias, kind=kind)
    states = (3 * torch.randn(20, 6, dtype=kind)).requires_grad_()
    tokens = torch.randint(33, (20,))
    picked, entropy = head_logprobs(head, states, tokens, temperature=temperature, with_entropy=True)
    expected, spread = plainly(head, states, tokens, temperature)
    assert picked.dtype == kind
    torch.testing.assert_close(picked.double(), expected, rtol=1e-6, atol=1e-6)
    assert entropy is not None
    torch.testing.assert_close(entropy.double(), spread, rtol=1e-5, atol=1e-5)
    pairs = zip(learned(head, states, picked), learned(head, states, expected), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_its_gradient_passes_a_numerical_check() -> None:
    head = head_of(4, 9, bias=True, kind=torch.float64)
    states, tokens = torch.randn(5, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 3, 8, 8, 1])

    def given(*inputs: Tensor) -> Tensor:
        own = nn.Linear(4, 9, dtype=torch.float64)
        own.weight, own.bias = head.weight, head.bias
        return head_logprobs(own, inputs[0], tokens, temperature=1.3)[0]

    assert torch.autograd.gradcheck(given, (states, head.weight, head.bias))


def test_rows_in_parts_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    head, tokens = head_of(6, 33), torch.randint(33, (20,))
    states = torch.randn(20, 6, requires_grad=True)

    def results() -> list[Tensor]:
        picked, entropy = head_logprobs(head, states, tokens, with_entropy=True)
        assert entropy is not None
        return [picked.detach(), entropy, *learned(head, states, picked)]

    whole = results()
    monkeypatch.setattr(table, "AT_ONCE", {"cpu": 3 * 33})
    assert all(map(torch.equal, whole, results()))


def test_without_a_gradient_the_same_bits_are_given() -> None:
    """A ratio of a policy to itself is 1, whichever of its log-probs was recorded."""
    head, states, tokens = head_of(6, 33), torch.randn(20, 6), torch.randint(33, (20,))
    for precision in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision):
            picked, _ = head_logprobs(head, states, tokens)
            with torch.no_grad():
                assert torch.equal(head_logprobs(head, states, tokens)[0], picked)


def test_in_bf16_it_is_as_near_to_the_truth_as_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.models.heads.SMALL", 0)
    head = head_of(32, 500)
    states, tokens = (2 * torch.randn(300, 32)).requires_grad_(), torch.randint(500, (300,))
    exact, _ = plainly(head, states, tokens)
    found = []
    with torch.autocast("cpu", torch.bfloat16):
        found.append(head_logprobs(head, states, tokens)[0])
        logits = head(states)
        assert logits.dtype == torch.bfloat16
        found.append(torch.log_softmax(logits.float(), -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1))

    def distances(picked: Tensor) -> list[float]:
        ways = zip(
            [picked, *learned(head, states, picked)], [exact, *learned(head, states, exact)], strict=True
        )
        return [float(((one - other).norm() / other.norm()).detach()) for one, other in ways]

    for own, autograd in zip(*map(distances, found), strict=True):
        assert 1e-5 < own < 1.3 * autograd


def test_a_small_head_computes_in_float32_beside_bf16() -> None:
    head, states, tokens = head_of(6, 33), torch.randn(20, 6), torch.randint(33, (20,))
    exact = head_logprobs(head, states, tokens)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head_logprobs(head, states, tokens)[0], exact)


def test_a_likely_token_keeps_its_small_gradient() -> None:
    """1 - p of a p near 1 is no difference of rounded numbers."""
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[9.0], [0.0], [0.0]]))
    states = torch.ones(1, 1).bfloat16().requires_grad_()
    picked, _ = head_logprobs(head.bfloat16(), states, torch.tensor([0]))
    picked.backward()
    assert head.weight.grad is not None
    missing = 2 * math.exp(-9.0) / (1 + 2 * math.exp(-9.0))
    assert head.weight.grad[0].item() == pytest.approx(missing, rel=0.01)
    assert picked.item() == pytest.approx(math.log1p(-missing), rel=1e-3)


def test_a_chance_that_float32_has_no_number_for_has_a_log_prob_and_a_gradient() -> None:
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[150.0], [149.0], [-30.0]]))
    picked, _ = head_logprobs(head, torch.ones(3, 1), torch.tensor([0, 1, 2]))
    both = math.log(1 + math.exp(-1))
    torch.testing.assert_close(picked, torch.tensor([-both, -1 - both, -180 - both]))
    picked[2].backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(
        head.weight.grad.squeeze(1), torch.tensor([-math.exp(-both), -math.exp(-1 - both), 1.0])
    )


def test_a_frozen_head_hands_gradients_on() -> None:
    head, states, tokens = head_of(6, 33), torch.randn(20, 6, requires_grad=True), torch.randint(33, (20,))
    expected = learned(head, states, head_logprobs(head, states, tokens)[0])[0]
    head.requires_grad_(requires_grad=False)
    head_logprobs(head, states, tokens)[0].backward(torch.linspace(-1.0, 2.0, 20))
    assert states.grad is not None
    assert torch.equal(states.grad, expected)
    assert head.weight.grad is None


def test_a_head_that_is_more_than_its_weights_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    head, states, tokens = head_of(6, 33), torch.randn(20, 6), torch.randint(33, (20,))
    expected, _ = head_logprobs(head, states, tokens)
    head.register_forward_hook(lambda *_: None)
    with monkeypatch.context() as patched:
        patched.delattr(module, "_HeadLogprobs")
        found, entropy = head_logprobs(head, states, tokens, with_entropy=True)
        assert entropy is not None
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(entropy.double(), plainly(head, states, tokens)[1])


def test_no_row_has_no_log_prob() -> None:
    picked, entropy = head_logprobs(head_of(6, 33), torch.zeros(0, 6), torch.zeros(0, dtype=torch.long))
    assert picked.shape == (0,)
    assert entropy is None
