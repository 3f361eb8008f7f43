"""Where each objective comes to rest, derived on paper (docs/optimum.md) and solved without its code.

Each gives the log-probs of the responses, (N,) float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.toy.tree import Tree


def regularised_optimum(log_reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """pi* = pi_ref exp(r / beta) / Z: the optimum of E[r] - beta KL(pi || pi_ref)."""
    return (log_reference + reward / beta).log_softmax(dim=0)


def identity_preference_optimum(log_reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """IPO on the reference's pairs with Bradley-Terry labels: pi_ref exp(E_y'[2 p(y > y') - 1] / (2 beta)).

    The square loss is a weighted least squares fit of g(y) - g(y') to (2 p - 1) / (2 beta); with weights
    mu(y) mu(y') its solution is the mean over y'.
    """
    preference = torch.sigmoid(reward.unsqueeze(1) - reward.unsqueeze(0))
    gain = ((2 * preference - 1) * log_reference.exp().unsqueeze(0)).sum(dim=1)
    return (log_reference + gain / (2 * beta)).log_softmax(dim=0)


def smoothed_optimum(log_reference: Tensor, reward: Tensor, beta: float, smoothing: float) -> Tensor:
    """cDPO: g solves sum_y' mu(y') (p'(y, y') - sigmoid(g(y) - g(y'))) = 0, p' the smoothed preference.

    Solved by Newton's method; pi is pi_ref exp(g / beta).
    """
    weight = log_reference.exp()
    preference = torch.sigmoid(reward.unsqueeze(1) - reward.unsqueeze(0))
    target = (1 - smoothing) * preference + smoothing * (1 - preference)
    gain = torch.zeros_like(reward)
    for _ in range(100):
        fitted = torch.sigmoid(gain.unsqueeze(1) - gain.unsqueeze(0))
        residual = weight * ((target - fitted) * weight.unsqueeze(0)).sum(dim=1)
        slope = fitted * (1 - fitted) * weight.unsqueeze(0) * weight.unsqueeze(1)
        hessian = torch.diag(slope.sum(dim=1)) - slope
        gain = gain + torch.linalg.lstsq(hessian, residual.unsqueeze(1)).solution.squeeze(1)
    return (log_reference + gain / beta).log_softmax(dim=0)


def best_of(log_policy: Tensor, reward: Tensor, n: int) -> Tensor:
    """The best of n samples; among equal rewards each sample is as likely as under the policy."""
    policy = log_policy.exp()
    below = torch.stack([policy[reward < r].sum() for r in reward])
    upto = torch.stack([policy[reward <= r].sum() for r in reward])
    return (policy / (upto - below) * (upto**n - below**n)).log()


def standardised_optimum(log_reference: Tensor, reward: Tensor, beta: float, epsilon: float) -> Tensor:
    """Pairs' advantages divided by their std, with the KL as a loss: pi = pi_ref exp(h_pi / beta) / Z.

    h_pi(y) is the mean over y' of pi of ((r - r') / 2) / (|r - r'| / sqrt 2 + epsilon): what the other sample
    leaves of a reward once the std is divided out, about 0.7 P(r > r') - 0.7 P(r < r'), however large r is.
    Solved by damped iteration.
    """
    gap = reward.unsqueeze(1) - reward.unsqueeze(0)
    advantage = (gap / 2) / (gap.abs() / math.sqrt(2) + epsilon)
    log_policy = log_reference
    for _ in range(4000):
        gain = advantage @ log_policy.exp()
        step = (log_reference + gain / beta).log_softmax(dim=0)
        log_policy = (0.9 * log_policy + 0.1 * step).log_softmax(dim=0)
    return log_policy


Solver = Callable[[Tensor, Tensor, float], Tensor]


def per_token_penalty(tree: Tree, reference: Tensor, reward: Tensor, beta: float, solve: Solver) -> Tensor:
    """A KL that each token pays for itself, as a loss: the tokens before it do not see what it costs.

    Backwards from the longest prefixes, pi(. | s) = solve(Q(s, .), log pi_ref(. | s), beta), where Q is the
    expected reward alone.

    Args:
        reference: (S, V) logits.
        solve: (V,) Q and log-probs of the reference to (V,) probabilities.
    """
    log_reference = reference.log_softmax(dim=-1)
    table = torch.zeros_like(log_reference)
    value: dict[int, Tensor] = {}
    depth: dict[int, int] = {}
    after: dict[tuple[int, int], int] = {}
    final: dict[tuple[int, int], Tensor] = {}
    for n in range(len(tree.tokens)):
        size = int(tree.mask[n].sum())
        for t in range(size):
            state, token = int(tree.states[n, t]), int(tree.tokens[n, t])
            depth[state] = t
            if t + 1 < size:
                after[state, token] = int(tree.states[n, t + 1])
            else:
                final[state, token] = reward[n]
    for state in sorted(depth, key=lambda s: -depth[s]):
        q = torch.stack(
            [
                final[state, token] if (state, token) in final else value[after[state, token]]
                for token in range(tree.vocabulary)
            ]
        )
        chances = solve(q, log_reference[state], beta)
        table[state] = chances.log()
        value[state] = (chances * q).sum()
    return tree.log_distribution(table)


def solve_k2(q: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """Q - beta log(pi / pi_ref) is the same for every token: pi_ref exp(Q / beta) / Z."""
    return (log_reference + q / beta).softmax(dim=0)


def solve_k3(q: Tensor, log_reference: Tensor, beta: float) -> Tensor:
    """Q - beta (1 - pi_ref / pi) is lambda for every token: pi = pi_ref / (1 - (Q - lambda) / beta).

    At max Q - beta a probability is infinite, at max Q they sum to less than 1: the lambda between at which
    they sum to 1, by bisection.
    """
    reference = log_reference.exp()
    low, high = float(q.max()) - beta, float(q.max())
    for _ in range(200):
        middle = (low + high) / 2
        chances = reference / (1 - (q - middle) / beta)
        total = float(chances.sum()) if bool((chances > 0).all()) else math.inf
        low, high = (middle, high) if total > 1 else (low, middle)
    chances = reference / (1 - (q - high) / beta)
    return chances / chances.sum()
