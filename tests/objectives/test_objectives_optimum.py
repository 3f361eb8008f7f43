"""The tiny language in which optima are known, and one method of each kind held to its own."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.optimum import METHODS, Problem
from benchmarks.toy import fixed_points
from benchmarks.toy.direct import all_pairs
from benchmarks.toy.tree import END, divergence, make_tree, random_table, rewards

TREE = make_tree(vocabulary=3, length=2)
TABLE = random_table(TREE, seed=1)


def problem(beta: float = 0.5, name: str = "noise") -> Problem:
    reward = rewards(TREE)[name]
    return Problem(TREE, TABLE, TREE.log_distribution(TABLE), reward, beta, all_pairs(reward))


def test_the_language_is_complete_and_its_probabilities_sum_to_one() -> None:
    # The end; 1 or 2 and the end; two words of {1, 2} without an end.
    rows = {tuple(t[m].tolist()) for t, m in zip(TREE.tokens, TREE.mask, strict=True)}
    assert rows == {(END,), (1, END), (2, END), (1, 1), (1, 2), (2, 1), (2, 2)}
    assert TREE.count == 3
    assert float(TREE.log_distribution(TABLE).exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert len(make_tree(4, 3).tokens) == 40


def test_fixed_points_are_distributions_and_solve_their_equations() -> None:
    p = problem()
    mu = p.reference.exp()
    star = fixed_points.regularised_optimum(p.reference, p.reward, p.beta)
    leftover = p.reward - p.beta * (star - p.reference)
    assert float(leftover.max() - leftover.min()) == pytest.approx(0.0, abs=1e-12)
    smoothed = fixed_points.smoothed_optimum(p.reference, p.reward, p.beta, 0.1)
    gain = p.beta * (smoothed - p.reference)
    preference = torch.sigmoid(p.reward[:, None] - p.reward[None, :])
    residual = (
        (0.9 * preference + 0.1 * (1 - preference)) - torch.sigmoid(gain[:, None] - gain[None, :])
    ) @ mu
    assert float(residual.abs().max()) < 1e-10
    for solve in (fixed_points.solve_k2, fixed_points.solve_k3):
        q, reference = torch.tensor([1.0, 0.0, -2.0]).double(), torch.tensor([0.2, 0.3, 0.5]).double().log()
        chances = solve(q, reference, 0.7)
        assert float(chances.sum()) == pytest.approx(1.0, abs=1e-9)
    kept = fixed_points.best_of(
        torch.tensor([0.5, 0.3, 0.2]).double().log(), torch.tensor([1.0, 2.0, 2.0]), 2
    )
    # The worst wins only when drawn twice; the tied two share the rest by their chances.
    torch.testing.assert_close(kept.exp(), torch.tensor([0.25, 0.45, 0.30]).double())


def test_a_penalty_blind_to_the_future_is_exact_for_responses_of_one_token() -> None:
    tree = make_tree(vocabulary=4, length=1)
    table, reward = random_table(tree, seed=2), torch.tensor([0.3, -1.0, 2.0, 0.5]).double()
    blind = fixed_points.per_token_penalty(tree, table, reward, 0.6, fixed_points.solve_k2)
    star = fixed_points.regularised_optimum(tree.log_distribution(table), reward, 0.6)
    assert divergence(blind, star) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "online-dpo"])
def test_a_method_comes_to_its_fixed_point(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.toy.on_policy.STEPS", 200)
    p = problem()
    rest = METHODS[name].rest(p)
    start = divergence(p.reference, rest)
    assert start > 0.02
    assert divergence(METHODS[name].run(p), rest) < 0.01 * start


def test_the_kl_of_best_of_n_stays_below_its_bound() -> None:
    from prefloop.objectives.best_of_n import kl_bound

    p = problem()
    kept = fixed_points.best_of(p.reference, p.reward, 3)
    assert 0.1 < divergence(kept, p.reference) <= kl_bound(3) == math.log(3) - 2 / 3
