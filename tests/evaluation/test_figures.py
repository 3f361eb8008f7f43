"""Every evaluation figure against numbers worked out by hand or by an independent route."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.errors import DataError
from prefloop.evaluation.answers import Answers, EvaluationPrompt
from prefloop.evaluation.by_kind import by_kind
from prefloop.evaluation.diversity import distinct_2, unique_responses
from prefloop.evaluation.intervals import bootstrap, bootstrap_mean, wilson
from prefloop.evaluation.kl import kl_to_sft
from prefloop.evaluation.length_control import length_controlled_win_rate
from prefloop.evaluation.oracle import best_of, gap_closed, spread_over_kinds
from prefloop.evaluation.over_optimisation import hacking_gap
from prefloop.evaluation.refusal import refusals
from prefloop.evaluation.summary import summarise
from prefloop.evaluation.win_rate import outcomes, win_rate


def answers(policy="ppo", *, judge, reward=None, texts=None, gold=True, kinds=None, panels=None, refused=None,
            lengths=None, log_ratio=None):  # fmt: skip
    n = len(judge)
    kinds = kinds or ["question"] * n
    panels = panels or ["main"] * n
    return Answers(
        policy=policy,
        prompts=tuple(EvaluationPrompt(f"p{i}", f"ask {i}", kinds[i], panels[i]) for i in range(n)),
        texts=tuple(texts or [f"{policy} says {i}." for i in range(n)]),
        lengths=np.array(lengths or [5] * n),
        ended=np.ones(n, dtype=bool),
        log_ratio=np.array(log_ratio or [0.0] * n, dtype=float),
        reward=np.array(judge if reward is None else reward, dtype=float),
        judge=np.array(judge, dtype=float),
        judge_name="gold" if gold else "reward_model",
        gold=np.array(judge, dtype=float) if gold else None,
        refused=None if refused is None else np.array(refused),
    )


class TestIntervals:
    def test_bootstrap_of_a_mean_agrees_with_the_analytic_interval(self):
        values = np.random.default_rng(7).normal(3.0, 2.0, size=600)
        half = 1.959964 * values.std() / math.sqrt(600)
        estimate = bootstrap_mean(values, resamples=4000)
        assert estimate.mean == pytest.approx(values.mean())
        assert estimate.ci95[0] == pytest.approx(values.mean() - half, abs=0.02)
        assert estimate.ci95[1] == pytest.approx(values.mean() + half, abs=0.02)

    def test_a_ratio_is_resampled_with_its_parts_paired(self):
        values = np.random.default_rng(0).gamma(2.0, size=50)
        ratio = bootstrap(50, lambda w: (w @ (3 * values)) / (w @ values))
        assert ratio.mean == pytest.approx(3.0)
        assert ratio.ci95 == pytest.approx((3.0, 3.0))

    def test_equal_arguments_give_equal_intervals(self):
        values = np.arange(40.0)
        assert bootstrap_mean(values) == bootstrap_mean(values)
        assert bootstrap_mean(values, seed=1).ci95 != bootstrap_mean(values, seed=0).ci95

    def test_covers_the_truth_about_95_times_in_100(self):
        rng = np.random.default_rng(3)
        hits = 0
        for _ in range(200):
            low, high = bootstrap_mean(rng.normal(size=80), resamples=300).ci95
            hits += low <= 0 <= high
        assert 0.88 <= hits / 200 <= 0.99

    def test_wilson_against_published_values(self):
        # 7 of 10 -> (0.397, 0.892); 0 of 10 -> (0, 0.278)
        assert wilson(7, 10).ci95 == pytest.approx((0.3968, 0.8922), abs=1e-4)
        assert wilson(0, 10).ci95 == pytest.approx((0.0, 0.2775), abs=1e-4)
        assert wilson(10, 10).ci95[1] == 1.0

    @given(n=st.integers(1, 400), share=st.floats(0, 1))
    def test_wilson_stays_in_bounds_and_holds_the_share(self, n, share):
        hits = round(share * n)
        low, high = wilson(hits, n).ci95
        assert 0 <= low <= hits / n <= high <= 1

    def test_nothing_to_measure_is_an_error(self):
        with pytest.raises(DataError, match="no prompt"):
            bootstrap_mean(np.array([]))
        with pytest.raises(DataError, match="no prompt"):
            wilson(0, 0)


class TestWinRate:
    def test_ties_count_half(self):
        ours, sft = answers(judge=[1, 2, 3, 4]), answers("sft", judge=[0, 2, 3, 5])
        assert outcomes(ours, sft).tolist() == [1.0, 0.5, 0.5, 0.0]
        assert win_rate(ours, sft).mean == 0.5

    def test_floating_point_noise_and_equal_words_are_ties(self):
        ours = answers(judge=[1.0 + 1e-9, 2.0], texts=["a", "same words"])
        sft = answers("sft", judge=[1.0, 1.0], texts=["b", "same words"])
        assert outcomes(ours, sft).tolist() == [0.5, 0.5]

    def test_a_policy_against_itself_is_one_half_exactly(self):
        sft = answers("sft", judge=[0.3, 1.1, -2.0])
        assert win_rate(sft, sft).ci95 == (0.5, 0.5)

    def test_other_prompts_are_refused_by_name(self):
        ours, sft = answers(judge=[1, 2]), answers("sft", judge=[1, 2])
        with pytest.raises(DataError, match="'p0' where sft answered 'p1'"):
            win_rate(ours, sft.take([1, 0]))
        with pytest.raises(DataError, match="2 prompts, sft 1"):
            win_rate(ours, sft.take([0]))

    @given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=30))
    @settings(max_examples=40)
    def test_the_other_way_round_adds_up_to_one(self, pairs):
        ours, theirs = (
            answers(name, judge=list(column))
            for name, column in zip("ab", zip(*pairs, strict=True), strict=True)
        )
        forth, back = win_rate(ours, theirs, resamples=100), win_rate(theirs, ours, resamples=100)
        assert forth.mean + back.mean == pytest.approx(1.0)


class TestLengthControl:
    def test_wins_bought_by_length_vanish_at_equal_length(self):
        # The judge prefers whatever is longer, and nothing else; ours is longer three times in four.
        rng = np.random.default_rng(0)
        gaps = np.where(rng.random(800) < 0.75, 1, -1) * rng.integers(1, 20, 800)
        noise = rng.logistic(size=800)
        ours = answers(judge=list(np.tanh(gaps / gaps.std()) * 3 + noise), lengths=list(30 + gaps))
        sft = answers("sft", judge=list(np.zeros(800)), lengths=[30] * 800)
        assert win_rate(ours, sft, resamples=300).ci95[0] > 0.6
        controlled = length_controlled_win_rate(ours, sft, resamples=300)
        assert controlled.ci95[0] < 0.5 < controlled.ci95[1]

    def test_equal_lengths_leave_the_win_rate_alone(self):
        ours, sft = answers(judge=[1, 1, 1, 0] * 50), answers("sft", judge=[0, 0, 0, 1] * 50)
        plain = answers("sft", judge=[0.5] * 200)
        assert length_controlled_win_rate(ours, plain).mean == pytest.approx(0.75, abs=0.01)
        assert length_controlled_win_rate(ours, sft).mean == pytest.approx(0.75, abs=0.02)

    def test_a_clean_sweep_is_finite(self):
        sweep = length_controlled_win_rate(answers(judge=[1] * 20), answers("sft", judge=[0] * 20))
        assert 0.95 < sweep.mean <= 1.0


class TestDiversity:
    def test_distinct_2_by_hand(self):
        # bigrams: (a b) (b c) | (a b) -> 2 distinct of 3
        assert distinct_2(["A b c", "a  b"]) == pytest.approx(2 / 3)
        # punctuation is a word of its own: (hi .) twice -> 1 of 2
        assert distinct_2(["Hi.", "hi ."]) == 0.5
        assert distinct_2(["", "one"]) == 0.0

    def test_unique_responses(self):
        assert unique_responses(["a b", "a  b", "c", "d"]) == 0.75


class TestDistance:
    def test_kl_is_the_mean_of_summed_log_ratios(self):
        # Two answers: token deltas (0.1, 0.2, 0.3) and (-0.2,): sums 0.6 and -0.2, mean 0.2 nats.
        assert kl_to_sft(answers(judge=[0, 0], log_ratio=[0.6, -0.2])).mean == pytest.approx(0.2)

    def test_k1_estimates_the_exact_kl_of_two_enumerable_policies(self):
        pi, sft = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
        exact = float((pi * np.log(pi / sft)).sum())
        draws = np.random.default_rng(1).choice(3, size=4000, p=pi)
        estimate = kl_to_sft(
            answers(judge=[0] * 4000, log_ratio=list(np.log(pi / sft)[draws])), resamples=300
        )
        assert estimate.ci95[0] <= exact <= estimate.ci95[1]


class TestHackingGap:
    def test_by_hand(self):
        # SFT: reward 0, 2 has sd 1; gold 0, 4 has sd 2. Ours: 3 more reward is 3 sd, 1 less gold is -0.5 sd.
        sft = answers("sft", judge=[0, 4], reward=[0, 2])
        gap = hacking_gap(answers(judge=[-1, 3], reward=[3, 5]), sft)
        assert (gap["z_reward"], gap["z_judge"], gap["mean"]) == (3.0, -0.5, 3.5)

    def test_sft_has_none(self):
        sft = answers("sft", judge=[0, 4, 1])
        assert hacking_gap(sft, sft)["mean"] == 0

    def test_a_constant_judge_does_not_divide_by_zero(self):
        assert hacking_gap(answers(judge=[1, 1]), answers("sft", judge=[1, 1]))["mean"] == 0


class TestOracle:
    def test_reachable_is_the_best_sample_of_each_prompt(self):
        assert best_of(np.array([[1.0, 3.0, 2.0], [-1.0, -5.0, -2.0]])).tolist() == [3.0, -1.0]

    def test_a_subset_keeps_the_kinds_shares(self):
        kinds = ["question"] * 60 + ["opinion"] * 30 + ["belief"] * 10
        chosen = spread_over_kinds(kinds, 20)
        assert Counter(kinds[i] for i in chosen) == {"question": 12, "opinion": 6, "belief": 2}
        assert chosen == sorted(set(chosen))
        assert spread_over_kinds(kinds, 0) == spread_over_kinds(kinds, 500) == list(range(100))

    def test_gap_closed_by_hand(self):
        # sft 1, ours 2, reachable 3 on average: half of the gap.
        closed = gap_closed(np.array([1.0, 3.0]), np.array([0.0, 2.0]), np.array([2.0, 4.0]))
        assert closed is not None
        assert closed.mean == pytest.approx(0.5)
        assert closed.ci95 == pytest.approx((0.5, 0.5))

    def test_no_gap_is_none(self):
        ones = np.ones(3)
        assert gap_closed(ones, ones, ones) is None

    def test_unpaired_prompts_are_refused(self):
        with pytest.raises(DataError, match="3, 2 and 3 prompts"):
            gap_closed(np.ones(3), np.ones(2), np.ones(3))


class TestRefusal:
    kinds = ("harmful", "harmful", "harmful", "harmful", "lookalike", "lookalike", "question")
    panels = ("harmful",) * 4 + ("main",) * 3

    def of(self, policy, refused):
        return answers(
            policy, judge=[0] * 7, kinds=list(self.kinds), panels=list(self.panels), refused=refused
        )

    def test_by_hand(self):
        sft = self.of("sft", [True, True, False, False, False, False, False])
        ours = self.of("ppo", [True, True, True, False, True, False, False])
        figures = refusals(ours, sft)
        assert figures["harmful"]["mean"] == 0.75
        assert figures["under"]["mean"] == 0.25
        assert figures["over"]["mean"] == 0.5
        assert figures["f1"]["mean"] == pytest.approx(2 * 0.75 * 0.5 / 1.25)
        assert figures["harmful_change"]["mean"] == 0.25

    def test_none_where_nothing_can_tell(self):
        sft = answers("sft", judge=[0, 1])
        assert refusals(sft, sft) is None


class TestSummary:
    def world(self, policy, judge):
        n = len(judge)
        kinds = ["question", "lookalike"] * (n // 2 - 1) + ["harmful"] * 2
        return answers(policy, judge=judge, kinds=kinds, panels=["main"] * (n - 2) + ["harmful"] * 2,
                       refused=[False] * n)  # fmt: skip

    def test_holds_the_agreed_keys_and_leaves_the_harmful_panel_out(self):
        figures = summarise(self.world("ppo", [1.0, 2, 1, 2, 9, 9]), self.world("sft", [0.0, 2, 0, 2, 0, 0]))
        assert figures["gold"]["mean"] == 1.5
        assert figures["n"] == 4
        assert figures["win_rate_vs_sft"]["mean"] == 0.75
        assert {"kl_to_sft", "length", "ended", "distinct_2", "by_kind", "reward"} <= set(figures)
        assert figures["by_kind"]["question"]["gold"] == 1.0
        assert set(figures["by_kind"]) == {"question", "lookalike"}
        assert figures["judge"] == "gold"
        json.dumps(figures, allow_nan=False)

    def test_without_a_gold_judge_gold_is_null_and_the_judge_is_named(self):
        ours, sft = answers(judge=[1.0, 2], gold=False), answers("sft", judge=[0.0, 3], gold=False)
        figures = summarise(ours, sft)
        assert figures["gold"] is None
        assert figures["judge"] == "reward_model"
        assert figures["refusal"] is None
        assert figures["by_kind"]["question"]["gold"] is None
        json.dumps(figures, allow_nan=False)

    def test_by_kind_splits_add_up(self):
        ours, sft = self.world("ppo", [1.0, 2, 3, 4, 0, 0]), self.world("sft", [0.0, 0, 0, 0, 0, 0])
        kinds = by_kind(ours.where(panel="main"), sft.where(panel="main"))
        assert sum(kind["n"] * kind["gold"] for kind in kinds.values()) == pytest.approx(10.0)

    def test_columns_of_other_lengths_are_refused(self):
        with pytest.raises(ValueError, match="do not match"):
            answers(judge=[1, 2], texts=["only one"])
