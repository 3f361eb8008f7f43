"""Do the methods come to the optimum? On a language of 40 responses it is known exactly.

    python -m benchmarks.optimum [METHOD ...] [--json FILE]

The objectives of prefloop, run in expectation over all responses in float64, against where each must come to
rest: pi* = pi_ref exp(r / beta) / Z for those with the KL in the reward, and the fixed points derived in
docs/optimum.md for the others. Prints the KL (nats) from where a method ended to there, and from where it
started; exits with 1 if one is above 0.02.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.figures_file import write_figures
from benchmarks.toy.descent import minimise
from benchmarks.toy.direct import Pairs, all_pairs, expected_pair_loss
from benchmarks.toy.fixed_points import (
    best_of,
    identity_preference_optimum,
    per_token_penalty,
    regularised_optimum,
    smoothed_optimum,
    solve_k2,
    solve_k3,
    standardised_optimum,
)
from benchmarks.toy.on_policy import groups_of_two, online_dpo, ppo, reinforce
from benchmarks.toy.tree import Tree, divergence, make_tree, random_table, rewards
from prefloop.objectives import best_of_n
from prefloop.objectives.dpo import dpo_loss, robust_dpo_loss
from prefloop.objectives.grpo import EPSILON, group_advantages
from prefloop.objectives.ipo import ipo_loss
from prefloop.objectives.rloo import leave_one_out_advantages

LIMIT = 0.02
BETAS = (0.3, 1.0)
FLIPPED, SMOOTHING, SAMPLES = 0.2, 0.1, 3


@dataclass(frozen=True)
class Problem:
    """A reward and a beta in the tiny language.

    Attributes:
        table: (S, V) logits of the reference. reference: (N,) its log-probs of the responses.
        reward: (N,). pairs: of all responses, labelled by a rater with that reward.
    """

    tree: Tree
    table: Tensor
    reference: Tensor
    reward: Tensor
    beta: float
    pairs: Pairs

    def fitted(self, loss: Callable[..., Tensor], probability: Tensor | None = None) -> Tensor:
        """Responses' log-probs after fitting a pair loss to endless pairs of the reference."""
        labels = self.pairs.probability if probability is None else probability
        pairs = Pairs(self.pairs.first, self.pairs.second, labels)

        def expected(logits: Tensor) -> Tensor:
            log_policy = self.tree.log_distribution(logits)
            return expected_pair_loss(log_policy, self.reference, self.reference, pairs, loss)

        return self.tree.log_distribution(minimise(self.table, expected))

    def followed(self, method: Callable[..., Tensor], **options: object) -> Tensor:
        """Responses' log-probs after an on-policy method."""
        table = method(self.tree, self.table, self.reward, self.beta, **options)
        return self.tree.log_distribution(table)


@dataclass(frozen=True)
class Method:
    """How a method runs, and where it must come to rest; both give log-probs of the responses, (N,)."""

    target: str
    run: Callable[[Problem], Tensor]
    rest: Callable[[Problem], Tensor]


def optimum(problem: Problem) -> Tensor:
    return regularised_optimum(problem.reference, problem.reward, problem.beta)


def pair_loss(loss: Callable[..., object], problem: Problem, **options: float) -> Callable[..., Tensor]:
    """A pair loss of the library with its beta, as a function of five tensors."""

    def terms(a: Tensor, b: Tensor, c: Tensor, d: Tensor, p: Tensor) -> Tensor:
        result: Tensor = loss(a, b, c, d, beta=problem.beta, probability=p, **options).loss  # type: ignore[attr-defined]
        return result

    return terms


def weaker(problem: Problem) -> Problem:
    """IPO's pull is bounded, 1 / (2 beta) at most: a quarter of the beta moves it as far as the others."""
    return replace(problem, beta=problem.beta / 4)


def groups(advantages: Callable[[Tensor], Tensor], **options: str) -> Callable[[Problem], Tensor]:
    """A group method with two samples a prompt."""
    return lambda p: p.followed(groups_of_two, pairs=p.pairs, advantages=advantages, **options)


def robust(problem: Problem) -> Tensor:
    """Robust DPO on labels of which a share is flipped."""
    clean = problem.pairs.probability
    noisy = (1 - FLIPPED) * clean + FLIPPED * (1 - clean)
    return problem.fitted(pair_loss(robust_dpo_loss, problem, label_smoothing=FLIPPED), noisy)


def rejection(problem: Problem) -> Tensor:
    """What fine-tuning on the best of n comes to: how often each response is the one that is kept."""
    size = len(problem.reward)
    drawn = torch.cartesian_prod(*[torch.arange(size)] * SAMPLES)  # (N^n, n)
    chance = problem.reference.exp()[drawn].prod(dim=1)
    kept = drawn.gather(1, best_of_n.best_of(problem.reward[drawn]).unsqueeze(1)).squeeze(1)
    return torch.zeros(size, dtype=torch.float64).index_add(0, kept, chance).log()


centred = partial(group_advantages, scale="none")
STAR = "pi*"
METHODS: dict[str, Method] = {
    "ppo": Method(STAR, lambda p: p.followed(ppo), optimum),
    "rloo": Method(STAR, groups(leave_one_out_advantages), optimum),
    "dr-grpo": Method(STAR, groups(centred), optimum),
    "grpo": Method(STAR, groups(group_advantages, normaliser="sequence"), optimum),
    "reinforce++": Method(STAR, lambda p: p.followed(reinforce), optimum),
    "online-dpo": Method(STAR, lambda p: p.followed(online_dpo, pairs=p.pairs), optimum),
    "dpo": Method(STAR, lambda p: p.fitted(pair_loss(dpo_loss, p)), optimum),
    "robust-dpo": Method(STAR, robust, optimum),
    "dr-grpo, k2 of the sequence": Method(
        "pi* of r / 2",
        groups(centred, estimator="k2_sequence"),
        lambda p: regularised_optimum(p.reference, p.reward / 2, p.beta),
    ),
    "dr-grpo, k2 a token": Method(
        "future-blind k2",
        groups(centred, estimator="k2"),
        lambda p: per_token_penalty(p.tree, p.table, p.reward / 2, p.beta, solve_k2),
    ),
    "dr-grpo, k3 a token": Method(
        "future-blind k3",
        groups(centred, estimator="k3"),
        lambda p: per_token_penalty(p.tree, p.table, p.reward / 2, p.beta, solve_k3),
    ),
    "grpo, k2 of the sequence": Method(
        "divided by the std",
        groups(group_advantages, estimator="k2_sequence"),
        lambda p: standardised_optimum(p.reference, p.reward, p.beta, EPSILON),
    ),
    "cdpo": Method(
        "smoothed labels",
        lambda p: p.fitted(pair_loss(dpo_loss, p, label_smoothing=SMOOTHING)),
        lambda p: smoothed_optimum(p.reference, p.reward, p.beta, SMOOTHING),
    ),
    "ipo": Method(
        "mean preference",
        lambda p: p.fitted(pair_loss(ipo_loss, weaker(p))),
        lambda p: identity_preference_optimum(p.reference, p.reward, weaker(p).beta),
    ),
    "rejection": Method(f"best of {SAMPLES}", rejection, lambda p: best_of(p.reference, p.reward, SAMPLES)),
}


@dataclass(frozen=True)
class Row:
    """One method on one problem.

    Attributes:
        start, end: KL to the fixed point from the reference, and from where the method ended (nats).
    """

    method: str
    reward: str
    beta: float
    target: str
    start: float
    end: float
    passed: bool


def measure(names: list[str]) -> Iterator[Row]:
    """The rows of some methods.

    Raises:
        SystemExit: a fixed point lies so near the reference that a method at rest would pass.
    """
    tree = make_tree(vocabulary=4, length=3)
    table = random_table(tree, seed=0)
    reference = tree.log_distribution(table)
    for name in names:
        for title, reward in rewards(tree).items():
            for beta in BETAS:
                problem = Problem(tree, table, reference, reward, beta, all_pairs(reward))
                rest = METHODS[name].rest(problem)
                start = divergence(reference, rest)
                if start <= 1.5 * LIMIT:
                    raise SystemExit(f"{name}, {title}, beta {beta}: the start passes ({start:.3f} nats)")
                end = divergence(METHODS[name].run(problem), rest)
                yield Row(name, title, beta, METHODS[name].target, start, end, end <= LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of: {', '.join(METHODS)}")
    parser.add_argument("--json", type=Path, help="write the rows here, too")
    options = parser.parse_args()
    unknown = set(options.methods) - set(METHODS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    torch.set_num_threads(1)
    began = time.perf_counter()
    print(f"{'method':<28} {'reward':<11} {'beta':>4}  {'rests at':<19} {'start':>7} {'end':>9}  (KL, nats)")
    rows = []
    for row in measure(options.methods or list(METHODS)):
        rows.append(row)
        print(
            f"{row.method:<28} {row.reward:<11} {row.beta:>4}  {row.target:<19} {row.start:>7.3f} "
            f"{row.end:>9.1e}  {'ok' if row.passed else 'FAILED'}",
            flush=True,
        )
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows)} rows, {failed} failed, {time.perf_counter() - began:.0f} s")
    if options.json:
        write_figures(options.json, rows)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
