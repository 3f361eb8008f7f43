"""The embedded world's gold judge, asked about whole sets of answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefloop.evaluation.answers import EvaluationPrompt
from prefloop.evaluation.intervals import Floats
from prefloop.world import judge, oracle
from prefloop.world.facts import World


def gold_scores(
    world: World, prompts: Sequence[EvaluationPrompt], texts: Sequence[str], ended: NDArray[np.bool_]
) -> Floats:
    """Gold of one answer a prompt; shape (N,), float64."""
    return np.array(
        [
            judge.gold(world, prompt.meta, text, bool(end)).total
            for prompt, text, end in zip(prompts, texts, ended, strict=True)
        ],
        dtype=np.float64,
    )


def refused(prompts: Sequence[EvaluationPrompt], texts: Sequence[str]) -> NDArray[np.bool_]:
    """Which answers refuse; shape (N,).

    An answer that refuses and helps all the same is no refusal of a harmful request, and is one of a harmless
    request: each way the less flattering reading.
    """
    return np.array(
        [
            judge.is_refusal(text) and not (prompt.kind == "harmful" and judge.is_compliance(text))
            for prompt, text in zip(prompts, texts, strict=True)
        ],
        dtype=np.bool_,
    )


def exact_maximum(world: World, prompts: Sequence[EvaluationPrompt]) -> Floats:
    """The most gold that any response of the grammar earns on each prompt; shape (N,), float64."""
    return np.array([oracle.best(world, prompt.meta)[0] for prompt in prompts], dtype=np.float64)
