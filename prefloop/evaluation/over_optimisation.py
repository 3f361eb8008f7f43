"""Does the reward model like a policy more than an independent judge does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from prefloop.evaluation.answers import Answers, paired
from prefloop.evaluation.intervals import Floats, bootstrap, rounded


def hacking_gap(answers: Answers, sft: Answers, *, resamples: int = 2000) -> Mapping[str, Any]:
    """z(reward) - z(judge), both in standard deviations of the SFT policy's answers to the same prompts.

    0 means that both judges see the same gain; a gap well above 0 means that the policy learnt what the
    reward model likes and the independent judge (gold where there is one) does not.

    Returns:
        mean, ci95, n of the gap, and its two sides `z_reward`, `z_judge`. A judge that gave every SFT answer
        the same score has no scale: its side is then in the judge's own units.
    """
    paired(answers, sft)
    reward = (answers.reward - sft.reward) / _scale(sft.reward)
    judge = (answers.judge - sft.judge) / _scale(sft.judge)
    gap = bootstrap(len(answers), lambda weights: weights @ (reward - judge), resamples=resamples)
    return {
        **gap.as_json(),
        "z_reward": rounded(reward.mean()),
        "z_judge": rounded(judge.mean()),
    }


def _scale(values: Floats) -> float:
    spread = float(np.std(values))
    return spread if spread > 1e-12 else 1.0
