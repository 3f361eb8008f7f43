"""How well a reward model orders held-out comparisons, against the trivial baselines it must beat."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prefloop.data.comparisons import Ranking
from prefloop.data.templates import as_messages
from prefloop.evaluation.intervals import bootstrap

Scores = Sequence[Sequence[float]]


def pair_outcomes(rankings: Sequence[Ranking], scores: Scores) -> list[tuple[int, float]]:
    """(ranking index, outcome) of every ordered pair: 1 if the better one scores higher, 1/2 if equal."""
    outcomes = []
    for index, (ranking, own) in enumerate(zip(rankings, scores, strict=True)):
        for better, worse in ranking.pairs:
            gap = own[better] - own[worse]
            outcomes.append((index, 0.5 if gap == 0 else float(gap > 0)))
    return outcomes


def accuracy(rankings: Sequence[Ranking], scores: Scores, *, resamples: int) -> dict[str, Any]:
    """Share of ordered pairs that the scores order rightly, with a 95 % interval from resampled prompts.

    A prompt's pairs share its completions, so prompts, not pairs, are resampled.
    """
    return _share(pair_outcomes(rankings, scores), len(rankings), resamples)


def lead(rankings: Sequence[Ranking], scores: Scores, others: Scores, *, resamples: int) -> dict[str, Any]:
    """Accuracy of `scores` minus that of `others`, paired: both on the same resampled prompts."""
    ours, theirs = pair_outcomes(rankings, scores), pair_outcomes(rankings, others)
    gaps = [(index, own - other) for (index, own), (_, other) in zip(ours, theirs, strict=True)]
    return _share(gaps, len(rankings), resamples)


def accuracy_by(
    rankings: Sequence[Ranking], scores: Scores, part: Callable[[Ranking], str]
) -> dict[str, dict[str, float]]:
    """Accuracy and pairs of each part (a subset, a rater); rankings without a name are left out."""
    groups: dict[str, list[float]] = defaultdict(list)
    for index, outcome in pair_outcomes(rankings, scores):
        if name := part(rankings[index]):
            groups[name].append(outcome)
    return {
        name: {"accuracy": round(sum(values) / len(values), 6), "pairs": len(values)}
        for name, values in sorted(groups.items())
    }


def calibration_error(rankings: Sequence[Ranking], scores: Scores, bins: int = 10) -> float:
    """Expected calibration error of sigmoid(r_i - r_j) over pairs: sum (n_b / n) |confidence - accuracy|.

    Confidence is that of the completion scored higher, so it lies in [1/2, 1] (Guo et al. 2017, eq. 3).
    """
    found: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for ranking, own in zip(rankings, scores, strict=True):
        for better, worse in ranking.pairs:
            gap = own[better] - own[worse]
            confidence = 1 / (1 + math.exp(-min(abs(gap), 50.0)))
            found[min(int((confidence - 0.5) * 2 * bins), bins - 1)].append(
                (confidence, 0.5 if gap == 0 else float(gap > 0))
            )
    total = sum(map(len, found))
    return sum(abs(sum(c for c, _ in b) - sum(a for _, a in b)) for b in found) / max(total, 1)


def disagreement(members: Sequence[Scores]) -> float:
    """Mean over completions of the standard deviation of the members' scores there (theirs: over M).

    Args:
        members: each member's scores, on a common scale.
    """
    stacked = np.array([[value for own in scores for value in own] for scores in members])
    return float(stacked.std(axis=0).mean())


def longer_wins(rankings: Sequence[Ranking]) -> list[list[float]]:
    """Scores of the baseline that prefers the longer text (characters)."""
    return [[float(len(_text(c))) for c in ranking.completions] for ranking in rankings]


def bag_of_words(
    fit: Sequence[Ranking], held: Sequence[Ranking], *, vocabulary: int = 2000
) -> list[list[float]]:
    """Scores of a logistic regression on word counts, fitted to the same pairs; `held` is only scored.

    Full-batch gradient descent on Bradley-Terry over log(1 + count) of the commonest words, with L2.
    """
    counts: dict[str, int] = defaultdict(int)
    for ranking in fit:
        for completion in ranking.completions:
            for word in set(_words(completion)):
                counts[word] += 1
    names = sorted(counts, key=lambda w: (-counts[w], w))[:vocabulary]
    index = {word: i for i, word in enumerate(names)}

    def features(completion: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
        row = np.zeros(len(index) + 1)
        words = _words(completion)
        for word in words:
            if word in index:
                row[index[word]] += 1
        row[-1] = len(words) / 10
        return np.log1p(row)

    if not index:
        return [[0.0] * len(r.completions) for r in held]
    gaps = []
    for ranking in fit:
        rows = [features(c) for c in ranking.completions]
        gaps += [rows[i] - rows[j] for i, j in ranking.pairs]
    x = np.stack(gaps)
    weights = np.zeros(x.shape[1])
    momentum = np.zeros_like(weights)
    rate = 1.0 / max(float((x**2).sum(axis=1).mean()) / 4, 1e-6)
    for _ in range(300):
        gradient = (
            -(x * (1 / (1 + np.exp(np.clip(x @ weights, -50, 50))))[:, None]).mean(axis=0) + 1e-3 * weights
        )
        momentum = 0.9 * momentum - 0.1 * rate * gradient
        weights = weights + momentum
    return [[float(features(c) @ weights) for c in ranking.completions] for ranking in held]


def summarise(
    fit: Sequence[Ranking],
    held: Sequence[Ranking],
    scores: Scores,
    *,
    resamples: int,
    log_odds: Scores | None = None,
    members: Sequence[Scores] = (),
) -> dict[str, Any]:
    """Every figure of a reward model on held-out comparisons; the baselines see the same split.

    Args:
        log_odds: scores whose differences are log-odds, for the calibration error; None: they are `scores`.
        members: an ensemble's scores one by one, on a common scale.
    """
    if not held:
        return {"held_out_prompts": 0}
    ensemble = {}
    if members:
        ensemble = {
            "members": {
                str(number): accuracy(held, own, resamples=resamples) for number, own in enumerate(members)
            },
            "disagreement": round(disagreement(members), 6),
        }
    baselines = {"longer_wins": longer_wins(held), "bag_of_words": bag_of_words(fit, held)}
    return {
        "held_out_prompts": len(held),
        "accuracy": accuracy(held, scores, resamples=resamples),
        "ece": round(calibration_error(held, scores if log_odds is None else log_odds), 6),
        "baselines": {
            name: accuracy(held, others, resamples=resamples) for name, others in baselines.items()
        },
        "lead": {name: lead(held, scores, others, resamples=resamples) for name, others in baselines.items()},
        "by_subset": accuracy_by(held, scores, lambda ranking: ranking.subset),
        "by_rater": accuracy_by(held, scores, lambda ranking: ranking.rater),
        **ensemble,
    }


def _share(outcomes: Sequence[tuple[int, float]], prompts: int, resamples: int) -> dict[str, Any]:
    right, pairs = np.zeros(prompts), np.zeros(prompts)
    for index, outcome in outcomes:
        right[index] += outcome
        pairs[index] += 1
    estimate = bootstrap(prompts, lambda w: (w @ right) / np.maximum(w @ pairs, 1e-12), resamples=resamples)
    return {**estimate.as_json(), "pairs": int(pairs.sum())}


def _text(completion: Any) -> str:
    return " ".join(message["content"] for message in as_messages(completion, "assistant"))


def _words(completion: Any) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", _text(completion).lower())
