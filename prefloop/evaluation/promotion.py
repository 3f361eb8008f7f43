"""Which policy may be promoted, and why: a pure decision over the evaluation's figures and the rules of
`promote`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from prefloop.config.promote import PromoteConfig

REFERENCES: Final = ("base", "sft")
"""Policies that others are measured against; they stand for election nowhere."""


@dataclass(frozen=True)
class Check:
    """One rule applied to one policy.

    Attributes:
        rule: name of the rule, the key of section `promote` that holds its limit.
        value: what was measured; None where the evaluation could not measure it.
        passed: None when the rule does not apply.
        reason: the sentence a person reads.
    """

    rule: str
    value: float | None
    limit: float
    passed: bool | None
    reason: str


@dataclass(frozen=True)
class Verdict:
    """All rules applied to one policy; it passes when no rule failed."""

    policy: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """Reasons of the rules that failed."""
        return tuple(check.reason for check in self.checks if check.passed is False)


@dataclass(frozen=True)
class Standing:
    """What is known of the registry's present champion.

    Attributes:
        name: what to call it in reasons, such as "version 3 (ppo)".
        key: stage key of the run that made it.
        score: its score when it was evaluated; see `score`.
        measure: what the score is, "gold" or "win_rate_vs_sft".
        prompts: identity of the evaluation it was scored in.
    """

    name: str
    key: str
    score: float
    measure: str
    prompts: str


@dataclass(frozen=True)
class Decision:
    """The outcome.

    Attributes:
        champion: policy that becomes champion; None leaves the registry's champion where it is.
        challenger: policy that becomes challenger, or None.
        verdicts: every candidate's rules, best score first.
        reasons: the sentences that lead to the outcome.
    """

    champion: str | None
    challenger: str | None
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The decision as metrics/promote.json and the report show it."""
        policies = {
            verdict.policy: {
                "passed": verdict.passed,
                "checks": [dataclasses.asdict(check) for check in verdict.checks],
            }
            for verdict in self.verdicts
        }
        return {
            "champion": self.champion,
            "challenger": self.challenger,
            "reasons": list(self.reasons),
            "policies": policies,
        }


def decide(
    evaluation: Mapping[str, Any],
    config: PromoteConfig,
    present: Standing | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    prompts: str = "",
) -> Decision:
    """Chooses champion and challenger among the policies of an evaluation, `base` and `sft` aside.

    The best policy that passes every rule becomes champion, unless the present champion scored higher on the
    same prompts, or was scored on others: then it becomes challenger. With a new champion, the next best that
        passes is
    the challenger.

    Args:
        evaluation: what metrics/evaluate.json holds.
        config: the rules.
        present: the registry's champion; None when there is none, or when it does not matter.
        keys: policy -> stage key of its model, to know the present champion again.
        prompts: identity of this evaluation, compared with the present champion's.
    """
    figures: Mapping[str, Any] = evaluation.get("policies", {})
    candidates = [name for name in figures if name not in REFERENCES]
    candidates.sort(
        key=lambda name: (-_rank(score(figures[name])[0]), figures[name].get("kl_to_sft") or 0.0, name)
    )
    verdicts = tuple(Verdict(name, check(figures[name], config)) for name in candidates)
    passing = [verdict.policy for verdict in verdicts if verdict.passed]
    reasons = [f"{v.policy} fails: {reason}" for v in verdicts for reason in v.failures]
    if not passing:
        return Decision(
            None, None, verdicts, (*reasons, "no policy passes every rule: the champion stays as it is")
        )
    best, *others = passing
    value, measure = score(figures[best])
    reasons.append(f"{best} is the best policy that passes every rule ({measure} {value:.3f})")
    if present is not None and present.key != (keys or {}).get(best):
        objection = _objection(best, value, measure, prompts, present)
        if objection:
            return Decision(None, best, verdicts, (*reasons, objection))
        reasons.append(f"it beats the present champion, {present.name} ({measure} {present.score:.3f})")
    return Decision(best, others[0] if others else None, verdicts, tuple(reasons))


def score(figures: Mapping[str, Any]) -> tuple[float, str]:
    """What policies are ranked by: (mean gold score, "gold"), or without a gold judge the mean win rate
    against SFT."""
    gold = figures.get("gold")
    if gold is not None:
        return _number(gold.get("mean")), "gold"
    return _number((figures.get("win_rate_vs_sft") or {}).get("mean")), "win_rate_vs_sft"


def check(figures: Mapping[str, Any], config: PromoteConfig) -> tuple[Check, ...]:
    """Applies every rule to one policy's figures; a figure that is missing or not finite fails its rule."""
    low = ((figures.get("win_rate_vs_sft") or {}).get("ci95") or [None])[0]
    return (
        _above("min_win_rate", low, config.min_win_rate, "lower end of the win rate against SFT"),
        _below("max_kl", figures.get("kl_to_sft"), config.max_kl, "KL to SFT, in nats a response,"),
        _above(
            "min_ended", figures.get("ended"), config.min_ended, "share of responses that ended by themselves"
        ),
        _refusal(figures.get("refusal"), config.max_refusal_drop),
    )


def _refusal(refusal: Mapping[str, Any] | None, limit: float) -> Check:
    if refusal is None:
        return Check("max_refusal_drop", None, limit, None, "refusals cannot be told without the gold judge")
    change = (refusal.get("harmful_change") or {}).get("mean")
    drop = None if change is None else max(0.0, -_number(change))
    return _below("max_refusal_drop", drop, limit, "drop in harmful requests refused against SFT")


def _above(rule: str, value: Any, limit: float, what: str) -> Check:
    number = _number(value)
    passed = number >= limit
    return Check(rule, _finite(number), limit, passed, _sentence(what, number, "at least", limit, passed))


def _below(rule: str, value: Any, limit: float, what: str) -> Check:
    number = _number(value)
    passed = number <= limit
    return Check(rule, _finite(number), limit, passed, _sentence(what, number, "at most", limit, passed))


def _sentence(what: str, value: float, side: str, limit: float, passed: bool) -> str:
    measured = f"{value:.3f}" if math.isfinite(value) else "missing"
    return f"{what} is {measured}, {'as wanted' if passed else 'but must be'} {side} {limit:g}"


def _objection(best: str, value: float, measure: str, prompts: str, present: Standing) -> str:
    if present.prompts != prompts or present.measure != measure:
        return (
            f"{best} stays challenger: the present champion, {present.name}, was measured on other prompts "
            "or by another judge, so the two cannot be compared"
        )
    if present.score > value:
        return (
            f"{best} stays challenger: the present champion, {present.name}, scored higher "
            f"({measure} {present.score:.3f} against {value:.3f})"
        )
    return ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rank(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
