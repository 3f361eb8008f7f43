"""Every question asked of one policy, in one mapping: what metrics/evaluate/POLICY.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.evaluation.answers import MAIN, Answers
from prefloop.evaluation.by_kind import by_kind
from prefloop.evaluation.diversity import distinct_2, unique_responses
from prefloop.evaluation.gold import gold_score
from prefloop.evaluation.intervals import Floats, bootstrap_mean, rounded
from prefloop.evaluation.kl import kl_to_sft
from prefloop.evaluation.length import ended, length
from prefloop.evaluation.length_control import length_controlled_win_rate
from prefloop.evaluation.over_optimisation import hacking_gap
from prefloop.evaluation.refusal import refusals
from prefloop.evaluation.reward import judge_score, reward_score
from prefloop.evaluation.win_rate import outcomes, win_rate


def summarise(answers: Answers, sft: Answers, *, resamples: int = 2000) -> dict[str, Any]:
    """The figures of a policy over the main panel; refusals take the harmful panel too.

    Args:
        answers: the policy's answers, all panels.
        sft: the SFT policy's answers to the same prompts.
        resamples: bootstrap samples behind each interval.

    Raises:
        DataError: the two did not answer the same prompts, or the main panel is empty.
    """
    ours, theirs = answers.where(panel=MAIN), sft.where(panel=MAIN)
    gold = gold_score(ours, resamples=resamples)
    won = outcomes(ours, theirs)
    figures: dict[str, Any] = {
        "policy": answers.policy,
        "n": len(ours),
        "judge": answers.judge_name,
        "gold": None if gold is None else gold.as_json(),
        "reward": reward_score(ours, resamples=resamples).as_json(),
        "judge_score": judge_score(ours, resamples=resamples).as_json(),
        "win_rate_vs_sft": {
            **win_rate(ours, theirs, resamples=resamples).as_json(),
            "wins": int((won == 1.0).sum()),
            "ties": int((won == 0.5).sum()),
            "losses": int((won == 0.0).sum()),
            "length_controlled": length_controlled_win_rate(ours, theirs).as_json(),
        },
        "distinct_2": rounded(distinct_2(ours.texts)),
        "unique": rounded(unique_responses(ours.texts)),
        "refusal": refusals(answers, sft, resamples=resamples),
        "hacking_gap": hacking_gap(ours, theirs, resamples=resamples),
        "by_kind": by_kind(ours, theirs, resamples=resamples),
    }
    scalars = {
        "kl_to_sft": kl_to_sft(ours, resamples=resamples),
        "length": length(ours, resamples=resamples),
        "ended": ended(ours),
    }
    for name, estimate in scalars.items():
        figures[name] = estimate.as_json()["mean"]
        figures[f"{name}_ci95"] = estimate.as_json()["ci95"]
    return figures


def summarise_oracle(
    exact: Floats, reachable: Floats, samples: int, *, resamples: int = 2000
) -> Mapping[str, Any]:
    """The exact maximum over the grammar, (N,), and the best of `samples` SFT answers, over some of them."""
    return {
        "exact": bootstrap_mean(exact, resamples=resamples).as_json(),
        "reachable": bootstrap_mean(reachable, resamples=resamples).as_json(),
        "samples": samples,
    }
