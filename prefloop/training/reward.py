"""Fitting a reward model to pairs and rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefloop.config.reward import RewardConfig
from prefloop.data.batching import Order, chunks, steps_in
from prefloop.data.comparisons import Ranking
from prefloop.errors import DataError, TrainingError
from prefloop.models.reward_model import RewardModel
from prefloop.objectives.bradley_terry import ranking_loss
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.loop import Part, train
from prefloop.training.recorder import Recorder


@dataclass(frozen=True)
class EncodedRanking:
    """A ranking whose conversations are in tokens."""

    ranking: Ranking
    sequences: list[list[int]]


def encode_rankings(model: RewardModel, rankings: Iterable[Ranking], max_length: int) -> list[EncodedRanking]:
    """Encodes every completion once."""
    return [
        EncodedRanking(r, [model.encode(r.prompt, completion, max_length) for completion in r.completions])
        for r in rankings
    ]


def fit_reward_model(
    model: RewardModel,
    rows: Sequence[EncodedRanking],
    config: RewardConfig,
    *,
    seed: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
    what: str = "reward",
) -> None:
    """Trains in place; all pairs of a prompt enter the same step, so that a prompt counts once.

    Raises:
        DataError: no ranking orders anything.
    """
    rows = [row for row in rows if row.ranking.pairs]
    if not rows:
        raise DataError("no comparison orders its completions: all are ties, skipped or both bad")
    key = (seed, what)
    order = Order(len(rows), config.batch_size, key)
    total = steps_in(len(rows), config.batch_size, config.epochs, config.steps)

    def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
        chosen = order.step(step)
        for group in chunks(chosen, micro_batch_size):
            members = [rows[i] for i in group]
            scores = model([ids for row in members for ids in row.sequences])
            loss = scores.new_zeros(())
            correct, pairs, start = 0.0, 0, 0
            for row in members:
                own = scores[start : start + len(row.sequences)]
                start += len(row.sequences)
                ranking = row.ranking
                term = ranking_loss(
                    own,
                    ranking.ranks,
                    centering=config.centering,
                    margin=ranking.margin,
                    probability=ranking.probability,
                )
                loss = loss + term.loss / len(chosen)
                correct += float(term.correct) / term.pairs / len(chosen)
                pairs += term.pairs
            yield Part(loss, {"accuracy": correct, "pairs": float(pairs)})

    train(model.model, config, total, parts, key=key, checkpoints=checkpoints, recorder=recorder, what=what)


@torch.no_grad()
def raw_scores(
    model: RewardModel, rows: Sequence[EncodedRanking], batch_size: int = 128
) -> list[list[float]]:
    """Raw scores of every completion of every ranking."""
    flat = [ids for row in rows for ids in row.sequences]
    order = sorted(range(len(flat)), key=lambda i: (len(flat[i]), i))
    scores = [0.0] * len(flat)
    for group in chunks(order, batch_size):
        for i, value in zip(group, model([flat[i] for i in group]).tolist(), strict=True):
            scores[i] = value
    values = iter(scores)
    return [[next(values) for _ in row.sequences] for row in rows]


def normalise(model: RewardModel, prompts: Sequence[Any], completions: Sequence[str]) -> tuple[float, float]:
    """Sets the model's mean and std from raw scores of the SFT policy's completions; returns them.

    Raises:
        TrainingError: the scores do not vary, so that nothing could be learned from them.
    """
    model.mean, model.std = 0.0, 1.0
    raw = model.score(prompts, completions)
    mean, std = float(raw.mean()), float(raw.std())
    if not std > 1e-6:
        raise TrainingError(
            f"the reward model gives every completion the same score ({mean:.4f})",
            "train it longer or at another learning rate, and look at the comparisons' agreement",
        )
    model.mean, model.std = mean, std
    return mean, std
