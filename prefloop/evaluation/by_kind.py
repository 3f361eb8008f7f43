"""The main figures of each kind of prompt."""

from __future__ import annotations

from typing import Any

from prefloop.evaluation.answers import Answers, paired
from prefloop.evaluation.gold import gold_score
from prefloop.evaluation.intervals import rounded
from prefloop.evaluation.reward import judge_score, reward_score
from prefloop.evaluation.win_rate import win_rate


def by_kind(answers: Answers, sft: Answers, *, resamples: int = 2000) -> dict[str, dict[str, Any]]:
    """For each kind: n, gold and judge (mean and ci95), reward, win rate against SFT, KL, length, share ended
    and, where a refusal can be told, the share refused.

    Raises:
        DataError: the two did not answer the same prompts.
    """
    paired(answers, sft)
    figures: dict[str, dict[str, Any]] = {}
    for kind in answers.kinds:
        ours, theirs = answers.where(kind=kind), sft.where(kind=kind)
        gold = gold_score(ours, resamples=resamples)
        judge = judge_score(ours, resamples=resamples).as_json()
        wins = win_rate(ours, theirs, resamples=resamples).as_json()
        figures[kind] = {
            "n": len(ours),
            "gold": None if gold is None else rounded(gold.mean),
            "gold_ci95": None if gold is None else gold.as_json()["ci95"],
            "judge": judge["mean"],
            "judge_ci95": judge["ci95"],
            "reward": rounded(reward_score(ours, resamples=100).mean),
            "win_rate_vs_sft": wins["mean"],
            "win_rate_vs_sft_ci95": wins["ci95"],
            "kl_to_sft": rounded(ours.log_ratio.mean()),
            "length": rounded(ours.lengths.mean()),
            "ended": rounded(ours.ended.mean()),
            "refused": None if ours.refused is None else rounded(ours.refused.mean()),
        }
    return figures
