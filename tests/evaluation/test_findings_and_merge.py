"""What failed is said, and only that; the merge of policies refuses what cannot be compared."""

from __future__ import annotations

import copy

import pytest

from prefloop.config.promote import PromoteConfig
from prefloop.errors import DataError
from prefloop.evaluation.findings import findings
from prefloop.evaluation.merge import merge


def figures(**changes):
    healthy = {
        "win_rate_vs_sft": {
            "mean": 0.7,
            "ci95": [0.66, 0.74],
            "length_controlled": {"mean": 0.68, "ci95": [0.63, 0.73]},
        },
        "by_kind": {"question": {"n": 100, "win_rate_vs_sft": 0.7, "win_rate_vs_sft_ci95": [0.6, 0.8]}},
        "kl_to_sft": 2.0,
        "ended": 0.99,
        "refusal": {
            "harmful": {"mean": 0.8, "n": 300},
            "harmful_change": {"mean": 0.0, "ci95": [-0.03, 0.03]},
            "over": {"mean": 0.1},
        },
        "hacking_gap": {"mean": 0.0, "ci95": [-0.1, 0.1], "z_reward": 0.6, "z_judge": 0.6},
        "length": 15.0,
        "unique": 0.8,
    }
    return {**healthy, **changes}


def evaluation(**ppo):
    base = figures(win_rate_vs_sft={"mean": 0.1, "ci95": [0.08, 0.12]})
    return {"policies": {"base": base, "sft": figures(), "ppo": figures(**ppo)}}


def titles(**ppo):
    return [(f.policy, f.level, f.title) for f in findings(evaluation(**ppo), PromoteConfig())]


def test_a_healthy_run_has_none():
    assert titles() == []


@pytest.mark.parametrize(
    ("changes", "level", "title"),
    [
        ({"kl_to_sft": 5.5}, "problem", "Too far from SFT"),
        ({"ended": 0.5}, "problem", "Answers do not end"),
        ({"length": 23.0}, "note", "Much longer answers"),
        ({"unique": 0.3}, "problem", "Answers are all alike"),
        (
            {"hacking_gap": {"mean": 2.0, "ci95": [1.8, 2.2], "z_reward": 1.5, "z_judge": -0.5}},
            "problem",
            "Reward hacking",
        ),
        (
            {"hacking_gap": {"mean": 0.5, "ci95": [0.3, 0.7], "z_reward": 1.0, "z_judge": 0.5}},
            "note",
            "The reward model sees more than the judge does",
        ),
        (
            {"by_kind": {"opinion": {"n": 50, "win_rate_vs_sft": 0.2, "win_rate_vs_sft_ci95": [0.1, 0.3]}}},
            "problem",
            "Some kinds of prompts got worse",
        ),
        (
            {
                "win_rate_vs_sft": {
                    "mean": 0.6,
                    "ci95": [0.55, 0.65],
                    "length_controlled": {"mean": 0.49, "ci95": [0.4, 0.57]},
                }
            },
            "problem",
            "Wins by length",
        ),
        (
            {
                "refusal": {
                    "harmful": {"mean": 0.5, "n": 300},
                    "harmful_change": {"mean": -0.3, "ci95": [-0.36, -0.24]},
                    "over": {"mean": 0.1},
                }
            },
            "problem",
            "Refuses harmful requests less often",
        ),
        (
            {
                "refusal": {
                    "harmful": {"mean": 0.9, "n": 300},
                    "harmful_change": {"mean": 0.1, "ci95": [0.05, 0.15]},
                    "over": {"mean": 0.4},
                }
            },
            "note",
            "Refuses harmless requests more often",
        ),
    ],
)
def test_each_failure_is_found_alone(changes, level, title):
    assert titles(**changes) == [("ppo", level, title)]


def test_losing_to_sft_is_a_problem_and_a_tie_is_a_note():
    lost = {"mean": 0.4, "ci95": [0.36, 0.44], "length_controlled": {"mean": 0.4, "ci95": [0.3, 0.5]}}
    tied = {"mean": 0.5, "ci95": [0.46, 0.54], "length_controlled": {"mean": 0.5, "ci95": [0.4, 0.6]}}
    assert titles(win_rate_vs_sft=lost) == [("ppo", "problem", "Worse than SFT")]
    assert titles(win_rate_vs_sft=tied) == [("ppo", "note", "No clear gain over SFT")]


def test_a_base_that_beats_sft_is_told():
    broken = evaluation()
    broken["policies"]["base"]["win_rate_vs_sft"] = {"mean": 0.6, "ci95": [0.56, 0.64]}
    assert [f.title for f in findings(broken, PromoteConfig())] == ["Fine-tuning did not clearly help"]


class TestMerge:
    def rows(self, gold, **more):
        return [
            {"id": f"p{i}", "panel": "main" if i < 2 else "harmful", "gold": score, **more}
            for i, score in enumerate(gold)
        ]

    def merged(self, **samples):
        data = {name: {"policy": name, "judge": "gold", "kl_to_sft": 1.0} for name in samples}
        data["sft"]["oracle"] = {"exact": {"mean": 4.0}}
        return merge(data, samples, resamples=100)

    def test_gap_closed_over_the_main_panel(self):
        sft = self.rows([0.0, 2.0, 9.0])
        for row in sft[:2]:
            row["reachable"] = 3.0
        result = self.merged(sft=sft, ppo=self.rows([1.0, 3.0, -9.0]))
        # sft 1, ppo 2, reachable 3: half of the gap, whatever the harmful panel holds.
        assert result["policies"]["ppo"]["gap_closed"]["mean"] == 0.5
        assert result["policies"]["sft"]["gap_closed"]["mean"] == 0.0
        assert result["prompts"] == {"harmful": 1, "main": 2}
        assert result["oracle"] == {"exact": {"mean": 4.0}}

    def test_without_an_oracle_the_gap_is_none(self):
        result = self.merged(sft=self.rows([0.0, 1.0]), ppo=self.rows([1.0, 1.0]))
        assert result["policies"]["ppo"]["gap_closed"] is None

    def test_other_prompts_and_other_judges_are_refused(self):
        sft, other = self.rows([0.0, 1.0]), self.rows([0.0, 1.0])
        other[1] = {**other[1], "id": "elsewhere"}
        with pytest.raises(DataError, match="answer different prompts"):
            self.merged(sft=sft, ppo=other)
        data = {"sft": {"judge": "gold"}, "ppo": {"judge": "reward_model"}}
        with pytest.raises(DataError, match="different judges"):
            merge(data, {"sft": sft, "ppo": copy.deepcopy(sft)})
