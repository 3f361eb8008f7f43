"""The promotion rules, each at its edge, and the choice between policies and the present champion."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config.promote import PromoteConfig
from prefloop.evaluation.promotion import Standing, check, decide, score

RULES = PromoteConfig(min_win_rate=0.5, max_kl=5.0, min_ended=0.9, max_refusal_drop=0.05)


def figures(gold=1.5, low=0.6, kl=2.0, ended=0.99, change=0.0):
    return {
        "gold": None if gold is None else {"mean": gold, "ci95": [gold - 0.1, gold + 0.1]},
        "win_rate_vs_sft": {"mean": low + 0.04, "ci95": [low, low + 0.08]},
        "kl_to_sft": kl,
        "ended": ended,
        "refusal": None if change is None else {"harmful_change": {"mean": change, "ci95": [change, change]}},
    }


def evaluation(**policies):
    return {"policies": {"base": figures(gold=-2, low=0.1), "sft": figures(gold=1, low=0.5), **policies}}


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, set()),
        ({"low": 0.5}, set()),
        ({"low": 0.499}, {"min_win_rate"}),
        ({"kl": 5.0}, set()),
        ({"kl": 5.01}, {"max_kl"}),
        ({"ended": 0.89}, {"min_ended"}),
        ({"change": -0.05}, set()),
        ({"change": -0.06}, {"max_refusal_drop"}),
        ({"change": 0.4}, set()),
        ({"kl": math.nan}, {"max_kl"}),
        ({"kl": None, "ended": None}, {"max_kl", "min_ended"}),
    ],
)
def test_rules_at_their_edges(changes, failed):
    assert {c.rule for c in check(figures(**changes), RULES) if c.passed is False} == failed


def test_without_gold_judge_refusal_is_not_asked_and_the_win_rate_ranks():
    given_figures = figures(gold=None, low=0.6, change=None)
    checks = {c.rule: c for c in check(given_figures, RULES)}
    assert checks["max_refusal_drop"].passed is None
    assert score(given_figures) == (pytest.approx(0.64), "win_rate_vs_sft")


def test_best_passing_is_champion_and_runner_up_challenger():
    decision = decide(evaluation(ppo=figures(gold=1.9), dpo=figures(gold=1.7)), RULES)
    assert (decision.champion, decision.challenger) == ("ppo", "dpo")


def test_a_better_policy_that_fails_a_rule_is_passed_over_with_its_reason():
    decision = decide(evaluation(ppo=figures(gold=2.5, kl=7.25), dpo=figures(gold=1.7)), RULES)
    assert (decision.champion, decision.challenger) == ("dpo", None)
    assert "ppo fails: KL to SFT, in nats a response, is 7.250, but must be at most 5" in decision.reasons


def test_nobody_passes():
    decision = decide(evaluation(ppo=figures(low=0.4)), RULES)
    assert (decision.champion, decision.challenger) == (None, None)
    assert decision.reasons[-1].startswith("no policy passes")


def test_references_are_never_promoted():
    assert decide(evaluation(), RULES).champion is None


@pytest.mark.parametrize(
    ("present", "champion", "challenger"),
    [
        (Standing("version 1", "old", 1.4, "gold", "P"), "ppo", "dpo"),
        (Standing("version 1", "old", 2.4, "gold", "P"), None, "ppo"),
        (Standing("version 1", "old", 0.1, "gold", "other prompts"), None, "ppo"),
        (Standing("version 1", "old", 0.1, "win_rate_vs_sft", "P"), None, "ppo"),
        (Standing("version 1", "key of ppo", 2.4, "gold", "P"), "ppo", "dpo"),
    ],
)
def test_the_present_champion_is_only_replaced_by_what_beats_it(present, champion, challenger):
    found = evaluation(ppo=figures(gold=1.9), dpo=figures(gold=1.7))
    decision = decide(found, RULES, present, keys={"ppo": "key of ppo"}, prompts="P")
    assert (decision.champion, decision.challenger) == (champion, challenger)


numbers = st.floats(allow_nan=True, allow_infinity=True) | st.none()


@given(gold=numbers, low=numbers, kl=numbers, ended=numbers, change=numbers)
def test_any_figures_give_a_decision_that_json_can_hold(gold, low, kl, ended, change):
    found = {
        "gold": {"mean": gold},
        "win_rate_vs_sft": {"mean": low, "ci95": [low, low]},
        "kl_to_sft": kl,
        "ended": ended,
        "refusal": {"harmful_change": {"mean": change}},
    }
    decision = decide({"policies": {"ppo": found}}, RULES)
    json.dumps(decision.as_json(), allow_nan=False)
    if decision.champion:
        assert low >= RULES.min_win_rate
        assert kl <= RULES.max_kl
