"""How far engine and trainer are apart, and the weights that correct it, against values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from prefloop.objectives.importance import importance_weights, mismatch

TRAINER = torch.tensor([[0.5, 0.2, 0.9], [0.1, 0.3, 0.7]]).log()
ENGINE = torch.tensor([[0.25, 0.4, 0.9], [0.2, 0.3, 0.7]]).log()
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_mismatch_is_that_of_the_sampled_tokens() -> None:
    # Ratios pi_trainer / pi_engine: 2, 1/2, 1 and 1/2; what is masked differs and does not count.
    engine = torch.where(MASK, ENGINE, torch.tensor(-50.0))
    found = mismatch(TRAINER, engine, MASK)
    assert found["mismatch_mean"] == pytest.approx(3 * math.log(2) / 4, rel=1e-6)
    assert found["mismatch_max"] == pytest.approx(math.log(2), rel=1e-6)
    # r - 1 - log r of each.
    terms = [1 - math.log(2), -0.5 + math.log(2), 0, -0.5 + math.log(2)]
    assert found["mismatch_kl"] == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_the_estimate_of_the_kl_is_that_from_engine_to_trainer() -> None:
    # Every token as often as the engine draws it: the mean over them is the expectation under the engine.
    engine, trainer = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    drawn = torch.tensor([[0] * 7 + [1] * 2 + [2]])
    found = mismatch(trainer.log()[drawn], engine.log()[drawn], torch.ones_like(drawn, dtype=torch.bool))
    exact = float((engine * (engine / trainer).log()).sum())
    other = float((trainer * (trainer / engine).log()).sum())
    assert found["mismatch_kl"] == pytest.approx(exact, rel=1e-5)
    assert found["mismatch_kl"] != pytest.approx(other, rel=0.02)


def test_no_token_is_no_mismatch() -> None:
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    assert set(mismatch(TRAINER, ENGINE, nothing).values()) == {0.0}


@pytest.mark.parametrize(
    ("cap", "expected"),
    [(1.5, [[1.5, 0.5, 1.0], [0.5, 1.0, 1.0]]), (3.0, [[2.0, 0.5, 1.0], [0.5, 1.0, 1.0]])],
)
def test_weights_are_ratios_up_to_the_cap(cap: float, expected: list[list[float]]) -> None:
    weights = importance_weights(TRAINER.clone().requires_grad_(), ENGINE, cap)
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert not weights.requires_grad


def test_weights_stay_finite_where_the_engine_is_sure_that_it_cannot_be() -> None:
    weights = importance_weights(torch.tensor([[0.0, -1e4]]), torch.tensor([[-1e4, 0.0]]), 2.0)
    assert weights[0, 0] == 2
    assert 0 <= float(weights[0, 1]) < 1e-8
