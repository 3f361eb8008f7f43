"""Fitting a reward model to pairs and rankings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefloop.config.reward import RewardConfig
from prefloop.data.batching import Order, chunks, steps_in
from prefloop.data.comparisons import Ranking
from prefloop.errors import DataError
from prefloop.models.reward_model import RewardModel
from prefloop.models.shared_prompt import Tree, tree_scores
from prefloop.objectives import bradley_terry, plackett_luce
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.distribution import ranks
from prefloop.training.loop import Part, train
from prefloop.training.noise import Key
from prefloop.training.recorder import Recorder
from prefloop.training.shared_prompts import forest_of

LOSSES = {"bradley_terry": bradley_terry.ranking_loss, "plackett_luce": plackett_luce.ranking_loss}


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


def ordered(rows: Iterable[EncodedRanking]) -> list[EncodedRanking]:
    """Those that order something.

    Raises:
        DataError: there are none.
    """
    kept = [row for row in rows if row.ranking.pairs]
    if not kept:
        raise DataError("no comparison orders its completions: all are ties, skipped or both bad")
    return kept


def steps_of(rows: Sequence[EncodedRanking], config: RewardConfig) -> int:
    """Optimiser steps of one model's training on rows that are `ordered`."""
    return steps_in(len(rows), config.batch_size, config.epochs, config.steps)


def fit_reward_model(
    model: RewardModel,
    rows: Sequence[EncodedRanking],
    config: RewardConfig,
    *,
    seed: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
    what: str = "reward",
    member: int = 0,
) -> dict[str, Any]:
    """Trains in place; all pairs of a prompt enter the same step, so that a prompt counts once.

    Heads on a shared trunk are trained together on the sum of their losses.

    Args:
        member: number in an ensemble of separate models, on which the order of rows depends.

    Returns:
        What `train` says of the training, for the stage's figures.

    Raises:
        DataError: no ranking orders anything.
    """
    rows = ordered(rows)
    key: Key = (seed, what, "member", member) if member else (seed, what)
    order = Order(len(rows), config.batch_size, key)
    total = steps_of(rows, config)
    ranking_loss = LOSSES[config.loss]
    forest = shared_prompts(model, rows, config)

    def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
        chosen = order.step(step)
        for group in chunks(ranks().share(chosen), micro_batch_size):
            together = [rows[i] for i in group]
            if forest is None:
                scores = model([ids for row in together for ids in row.sequences])
            else:
                trees = [tree for i in group for tree in forest[i]]
                scores = tree_scores(model.model, trees, int(model.tokenizer.pad_token_id), model.precision)
            loss = scores.new_zeros(())
            correct, pairs, start = torch.zeros((), dtype=torch.float64, device=scores.device), 0, 0
            for row in together:
                own = scores[start : start + len(row.sequences)]
                start += len(row.sequences)
                ranking = row.ranking
                for head in own.unbind(dim=1):
                    term = ranking_loss(
                        head,
                        ranking.ranks,
                        centering=config.centering,
                        margin=ranking.margin,
                        probability=ranking.probability,
                    )
                    loss = loss + term.loss / len(chosen)
                    correct += term.correct.double() / (term.pairs * len(chosen) * own.shape[1])
                pairs += len(ranking.pairs)
            yield Part(loss, {"accuracy": correct, "pairs": float(pairs)})

    return train(
        model.model, config, total, parts, key=key, checkpoints=checkpoints, recorder=recorder, what=what
    )


def shared_prompts(
    model: RewardModel, rows: Sequence[EncodedRanking], config: RewardConfig
) -> list[list[Tree]] | None:
    """Each ranking's conversations as trees that encode its prompt once; None where none is to be shared."""
    pad_id = int(model.tokenizer.pad_token_id)
    return forest_of(model.model, pad_id, [row.sequences for row in rows], config)


@torch.no_grad()
def raw_scores(model: RewardModel, rows: Sequence[EncodedRanking], batch_size: int = 128) -> list[Tensor]:
    """Raw scores of every completion of every ranking: (K, M) float64 each."""
    flat = [ids for row in rows for ids in row.sequences]
    order = sorted(range(len(flat)), key=lambda i: (len(flat[i]), i))
    scores = torch.zeros(len(flat), model.members, dtype=torch.float64)
    for group in chunks(order, batch_size):
        scores[list(group)] = model([flat[i] for i in group]).double().cpu()
    return list(scores.split([len(row.sequences) for row in rows]))
