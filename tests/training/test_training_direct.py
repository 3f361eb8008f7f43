"""Trainings on preferences: what is encoded, kept and refused, and the step that every loss takes."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefloop.config.dpo import DPOConfig
from prefloop.config.orpo import ORPOConfig
from prefloop.config.simpo import SimPOConfig
from prefloop.config.training import LoraConfig
from prefloop.data.comparisons import Ranking
from prefloop.data.templates import Encoded
from prefloop.errors import DataError, TrainingError
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.direct import (
    PolicyPairs,
    Run,
    comparison_figures,
    completion_logprobs,
    fit_comparisons,
    policy_pairs,
)
from prefloop.training.dpo import dpo_part, fit_dpo, held_out_figures
from prefloop.training.orpo import orpo_part
from prefloop.training.pairs import EncodedComparison, encode_comparisons
from prefloop.training.reference import reference_logprobs
from prefloop.training.simpo import simpo_part
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import RANKINGS, SMOOTH, TRAININGS, dpo

TOKENS = tiny.tokenizer()
CONFIG = DPOConfig(max_length=48)
FAMILY: dict[str, dict[str, Any]] = {
    "smoothed": {"label_smoothing": 0.1, "nll_coef": 0.3},
    "robust": {"loss": "robust", "label_smoothing": 0.1},
    "ipo": {"loss": "ipo"},
    "ipo on means": {"loss": "ipo", "ipo_logprobs": "mean"},
    "hinge": {"loss": "hinge", "nll_coef": 0.3},
}


def policy(seed: int = 0) -> PreTrainedModel:
    return tiny.model(TOKENS, seed=seed)


def encoded(config: DPOConfig = CONFIG) -> list[EncodedComparison]:
    return encode_comparisons(RANKINGS, TOKENS, config)[0]


def run(folder: Path, recorder: StopAfter) -> Run:
    return Run(seed=0, precision="fp32", checkpoints=Checkpoints(folder, 1e9), recorder=recorder)


def pairs(chosen: str, rejected: str, count: int = 4) -> list[Ranking]:
    return [Ranking(f"What colour is the {i}?", [chosen, rejected], [0, 1]) for i in range(count)]


LONG = "I cannot help with that. " * 12


def test_a_side_that_is_always_cut_is_refused_with_its_numbers() -> None:
    with pytest.raises(
        DataError, match=r"max_length 48 cuts 4 of 4 chosen completions, but 0 of 4"
    ) as caught:
        encode_comparisons(pairs(LONG, "Blue."), TOKENS, CONFIG)
    assert "raise max_length" in caught.value.remedy
    with pytest.raises(DataError, match="cuts 0 of 4 chosen completions, but 4 of 4 rejected ones"):
        encode_comparisons(pairs("Blue.", LONG), TOKENS, CONFIG)


def test_sides_cut_alike_are_counted() -> None:
    _, cut = encode_comparisons(pairs(LONG, LONG), TOKENS, CONFIG)
    assert dataclasses.astuple(cut) == (4, 4, 4, 4, 4)
    # Half of a side is within bounds.
    mixed = pairs(LONG, "Blue.", 2) + pairs("Blue.", "It is red, I think.", 2)
    assert dataclasses.astuple(encode_comparisons(mixed, TOKENS, CONFIG)[1]) == (2, 2, 0, 4, 4)


def test_held_out_rows_may_be_cut_unequally() -> None:
    comparisons, cut = encode_comparisons(pairs(LONG, "Blue.", 1), TOKENS, CONFIG, strict=False)
    assert (len(comparisons), cut.chosen, cut.rejected) == (1, 1, 0)


def test_a_prompt_that_is_cut_is_no_cut_completion() -> None:
    long_prompt = [Ranking("What colour is the kettle? " * 12, ["Blue.", "It is red."], [0, 1])]
    _, cut = encode_comparisons(long_prompt, TOKENS, CONFIG)
    assert dataclasses.astuple(cut) == (1, 0, 0, 1, 1)


def test_a_ranking_of_ties_alone_is_left_out(tmp_path: Path) -> None:
    ties = Ranking("What colour is the mug?", ["Blue.", "Red."], [1, 1])
    comparisons, cut = encode_comparisons([ties, *RANKINGS[:2]], TOKENS, CONFIG)
    assert len(comparisons) == 2
    alone, cut = encode_comparisons([ties], TOKENS, CONFIG)
    assert (alone, cut.chosen_of) == ([], 0)
    with pytest.raises(DataError, match="dpo has no pair to train on"):
        fit_dpo(policy(), TOKENS, alone, [], CONFIG, **run(tmp_path, StopAfter()))
    config = SimPOConfig()
    part = simpo_part(config)
    with pytest.raises(DataError, match="simpo has no pair to train on"):
        fit_comparisons(policy(), TOKENS, alone, part, config, "simpo", **run(tmp_path, StopAfter()))


def test_an_empty_answer_is_its_end_token_alone() -> None:
    comparisons, _ = encode_comparisons(
        [Ranking("What colour is the mug?", ["Blue.", ""], [0, 1])], TOKENS, CONFIG
    )
    assert comparisons[0].completions[1].completion_ids == [TOKENS.eos_token_id]


def test_a_completion_without_a_token_has_a_log_prob_of_zero() -> None:
    rows = [Encoded([5, 6], [], [False, False]), Encoded([5, 6], [7], [False, False, True])]
    sums, lengths = completion_logprobs(policy(), TOKENS, rows, "fp32")
    assert lengths.tolist() == [0, 1]
    assert sums[0].item() == 0
    assert sums[1].item() < 0
    under = policy_pairs(policy(), TOKENS, [EncodedComparison(rows, [(0, 1), (1, 0)], 1.0)], "fp32")
    assert under.chosen_mean.tolist() == [0, sums[1].item()]
    under.chosen_mean.sum().backward()
    alone, _ = completion_logprobs(policy(), TOKENS, rows[:1], "fp32")
    assert alone.tolist() == [0]


def test_what_lies_under_the_mask_changes_nothing() -> None:
    model = policy()
    rows = encoded()[0].completions
    sums, _ = completion_logprobs(model, TOKENS, rows, "fp32")
    # Padding takes its place beside a longer row, and its token does not matter.
    longest = max(rows, key=lambda row: len(row.input_ids))
    beside, _ = completion_logprobs(model, SimpleNamespace(pad_token_id=7), [*rows, longest], "fp32")
    torch.testing.assert_close(beside[:-1], sums, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILY)
def test_eight_micro_batches_of_one_are_one_of_eight_for_every_loss(name: str, tmp_path: Path) -> None:
    common = {"steps": 1, "batch_size": 8, **SMOOTH, **FAMILY[name]}
    whole, parts = StopAfter(), StopAfter()
    one = dpo(tmp_path / "whole", whole, micro_batch_size=0, **common)
    other = dpo(tmp_path / "parts", parts, micro_batch_size=1, **common)
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-6, rtol=0)
    assert whole.rows[0] == pytest.approx(parts.rows[0], rel=1e-3, abs=1e-5)


# One comparison of two completions, of 5 and 2 tokens, whose raters are four to one for the first.
GIVEN = PolicyPairs(
    chosen=torch.tensor([-4.0], dtype=torch.float64),
    rejected=torch.tensor([-3.0], dtype=torch.float64),
    chosen_lengths=torch.tensor([5]),
    rejected_lengths=torch.tensor([2]),
    better=torch.tensor([1]),
    worse=torch.tensor([0]),
    probability=torch.tensor([0.8], dtype=torch.float64),
)
# The worse completion stands first.
GIVEN_REFERENCE = torch.tensor([-2.5, -5.0], dtype=torch.float64)


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # h is (-4 + 5) - (-3 + 2.5) = 1.5; a label stands with 0.8 x 0.9 + 0.2 x 0.1 = 0.74.
        ({"label_smoothing": 0.1}, 0.74 * nls(0.6) + 0.26 * nls(-0.6)),
        ({"loss": "robust", "label_smoothing": 0.1}, (0.7 * nls(0.6) + 0.1 * nls(-0.6)) / 0.8),
        ({"loss": "ipo"}, 0.8 * (1.5 - 1.25) ** 2 + 0.2 * (1.5 + 1.25) ** 2),
        # A token: (-4 + 5) / 5 - (-3 + 2.5) / 2 = 0.45.
        ({"loss": "ipo", "ipo_logprobs": "mean"}, 0.8 * (0.45 - 1.25) ** 2 + 0.2 * (0.45 + 1.25) ** 2),
        ({"loss": "hinge"}, 0.8 * 0.4 + 0.2 * 1.6),
        ({"loss": "hinge", "nll_coef": 0.5}, 0.8 * 0.4 + 0.2 * 1.6 + 0.5 * 4 / 5),
    ],
)
def test_each_loss_of_the_family_by_hand(options: dict[str, Any], expected: float) -> None:
    config = DPOConfig(**{"beta": 0.4, **options})
    found = dpo_part([GIVEN_REFERENCE], config)(GIVEN, [0], 1)
    assert float(found.loss) == pytest.approx(expected, rel=1e-9)
    assert found.metrics["accuracy"] == 1


def test_simpo_and_orpo_see_means_a_token_and_their_own_weights() -> None:
    # -4 / 5 and -3 / 2 a token.
    simpo = simpo_part(SimPOConfig(beta=2.0, margin=0.3, nll_coef=0.5))(GIVEN, [0], 2)
    expected = (0.8 * nls(1.4 - 0.3) + 0.2 * nls(-1.4 - 0.3) + 0.5 * 0.8) / 2
    assert float(simpo.loss) == pytest.approx(expected, rel=1e-9)
    assert simpo.metrics["margin"] == pytest.approx(1.4 / 2, rel=1e-9)
    p, q = math.exp(-0.8), math.exp(-1.5)
    ratio = math.log(p / (1 - p)) - math.log(q / (1 - q))
    orpo = orpo_part(ORPOConfig(odds_coef=0.3))(GIVEN, [0], 2)
    expected = (0.8 + 0.3 * (0.8 * nls(ratio) + 0.2 * nls(-ratio))) / 2
    assert float(orpo.loss) == pytest.approx(expected, rel=1e-9)
    assert orpo.metrics["log_odds_ratio"] == pytest.approx(ratio / 2, rel=1e-9)
    assert orpo.metrics["chosen_nll"] == pytest.approx(0.8 / 2, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("robust", math.log(2)),
        ("ipo", (1 / (2 * 0.1)) ** 2),
        ("ipo on means", (1 / (2 * 0.1)) ** 2),
        ("hinge", 1.0),
    ],
)
def test_at_the_reference_every_gap_is_zero(name: str, expected: float) -> None:
    config = DPOConfig(max_length=48, **{**FAMILY[name], "nll_coef": 0.0})
    comparisons = encoded()
    model = policy()
    reference = reference_logprobs(model, TOKENS, comparisons, "fp32")
    figures = held_out_figures(model, TOKENS, comparisons, reference, config, "fp32")
    assert figures["loss"] == pytest.approx(expected, rel=1e-4)
    assert figures["margin"] == pytest.approx(0, abs=1e-4)


def test_held_out_figures_by_hand() -> None:
    comparisons, model, other = encoded()[:3], policy(1), policy(2)
    config = DPOConfig(max_length=48, nll_coef=0.5, beta=0.3)
    reference = reference_logprobs(other, TOKENS, comparisons, "fp32")
    losses, chosen, rejected, nll = [], [], [], []
    for comparison, against in zip(comparisons, reference, strict=True):
        with torch.no_grad():
            own = [completion_logprobs(model, TOKENS, [c], "fp32")[0].item() for c in comparison.completions]
        for i, j in comparison.pairs:
            gap = 0.3 * ((own[i] - against[i].item()) - (own[j] - against[j].item()))
            nll.append(-own[i] / len(comparison.completions[i].completion_ids))
            losses.append(math.log1p(math.exp(-gap)))
            chosen.append(own[i])
            rejected.append(own[j])
    figures = held_out_figures(model, TOKENS, comparisons, reference, config, "fp32")
    count = len(losses)
    expected = {
        "loss": (sum(losses) + 0.5 * sum(nll)) / count,
        "chosen_logprob": sum(chosen) / count,
        "rejected_logprob": sum(rejected) / count,
        "chosen_nll": sum(nll) / count,
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert held_out_figures(model, TOKENS, [], [], config, "fp32") == {}
    simpo = SimPOConfig(max_length=48)
    means = comparison_figures(model, TOKENS, comparisons, simpo_part(simpo), "fp32")
    assert means["chosen_reward"] == pytest.approx(-2.0 * sum(nll) / count, rel=1e-4)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "simpo"])
def test_a_last_batch_that_is_smaller_counts_its_own_rows(name: str, tmp_path: Path) -> None:
    # 18 rankings, or 24 marked rows, by 7: the last step has 4, or 3.
    common = {"batch_size": 7, "epochs": 1, **SMOOTH}
    whole, parts = StopAfter(), StopAfter()
    one = TRAININGS[name](tmp_path / "whole", whole, **common)
    other = TRAININGS[name](tmp_path / "parts", parts, micro_batch_size=1, **common)
    assert len(whole.rows) == (4 if name == "kto" else 3)
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)
        assert 0 <= a["accuracy"] <= 1
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-6, rtol=0)


def test_every_method_watches_the_log_probs_of_both_sides(tmp_path: Path) -> None:
    for name in ("dpo", "kto", "orpo", "simpo"):
        recorder = StopAfter()
        TRAININGS[name](tmp_path / name, recorder, steps=1)
        row = recorder.rows[0]
        # Whole completions of several tokens, from a vocabulary of 320: about -5.8 a token.
        assert -300 < row["chosen_logprob"] < -5, name
        assert -300 < row["rejected_logprob"] < -5, name


def test_a_loss_that_is_not_a_number_stops_the_training(tmp_path: Path) -> None:
    comparisons = encoded()
    reference = [torch.full((len(c.completions),), float("nan")) for c in comparisons]
    with pytest.raises(TrainingError, match="dpo: the loss or gradient became nan at step 1"):
        fit_dpo(policy(), TOKENS, comparisons, reference, CONFIG, **run(tmp_path, StopAfter()))


def test_the_dpo_part_takes_the_references_of_its_own_rows() -> None:
    comparisons = encoded()[:4]
    model = policy(1)
    reference = reference_logprobs(policy(2), TOKENS, comparisons, "fp32")
    part = dpo_part(reference, CONFIG)
    with torch.no_grad():
        alone = part(policy_pairs(model, TOKENS, comparisons[2:3], "fp32"), [2], 1).loss.item()
    shifted = [r + 100.0 * (i != 2) * torch.arange(len(r)) for i, r in enumerate(reference)]
    with torch.no_grad():
        again = dpo_part(shifted, CONFIG)(policy_pairs(model, TOKENS, comparisons[2:3], "fp32"), [2], 1)
    assert again.loss.item() == alone


def test_only_adapters_move_and_the_first_gap_is_zero(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    for name in ("dpo", "kto"):
        recorder = StopAfter()
        after = TRAININGS[name](tmp_path / name, recorder, steps=3, lora=LoraConfig(rank=2, alpha=4.0))
        plain = dict(policy().named_parameters())
        for key, value in after.items():
            inner = key.replace("0.base_model.model.", "").replace(".base_layer", "")
            if "lora_" not in key:
                assert torch.equal(value, plain[inner]), key
        assert any("lora_B" in key and value.abs().sum() > 0 for key, value in after.items())
        assert recorder.rows[0]["chosen_reward"] == pytest.approx(0, abs=1e-4)
        assert abs(recorder.rows[-1]["chosen_reward"]) > 1e-4
