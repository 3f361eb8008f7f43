"""KTO: who is mismatched with whom, the reference point of a step, and what its labels have to be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config.kto import KTOConfig
from prefloop.config.training import LoraConfig
from prefloop.data.templates import Encoded
from prefloop.data.unpaired import Unpaired
from prefloop.errors import DataError
from prefloop.models.adapters import attach
from prefloop.training.direct import completion_logprobs
from prefloop.training.kto import (
    EncodedRow,
    KTOStep,
    encode_unpaired,
    held_out_figures,
    held_out_step,
    kto_reference,
    mismatch,
    step_point,
    training_steps,
)
from prefloop.training.reference import row_logprobs
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import MARKED, SMOOTH, kto

TOKENS = tiny.tokenizer()
CONFIG = KTOConfig(batch_size=8, max_length=48)
ROWS, _ = encode_unpaired(MARKED, TOKENS, CONFIG)


def row(prompt: str, answer: int, length: int = 3, desirable: bool = True) -> EncodedRow:
    """A row of `length` prompt tokens and one answer token, `answer`."""
    tokens = Encoded(list(range(100, 100 + length)), [answer], [False] * length + [True])
    return EncodedRow(prompt, tokens, desirable)


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 99))
def test_each_prompt_gets_an_answer_to_another_prompt(prompts: list[int], seed: int) -> None:
    rows = [row(str(prompt), 10 * prompt, prompt + 1) for prompt in prompts]
    pairs = mismatch(rows, range(len(rows)), (seed, "x"), 48)
    assert len(pairs) == (len(rows) if len(set(prompts)) > 1 else 0)
    # The prompt's length and the answer's token name what they come from.
    assert all(pair.completion_ids != [10 * (len(pair.prompt_ids) - 1)] for pair in pairs)
    assert sorted(len(pair.prompt_ids) for pair in pairs) == sorted(p + 1 for p in prompts if pairs)
    assert all(pair.trainable == [False] * len(pair.prompt_ids) + [True] for pair in pairs)


def test_answers_of_distinct_prompts_are_each_used_once() -> None:
    rows = [row(str(i), i) for i in range(9)]
    pairs = mismatch(rows, range(9), (0, "x"), 48)
    assert sorted(pair.completion_ids[0] for pair in pairs) == list(range(9))


def test_who_is_mismatched_depends_on_the_key_alone() -> None:
    rows = [row(str(i), i, i + 1) for i in range(9)]
    first = mismatch(rows, range(9), (0, "x", 1), 48)
    assert mismatch(rows, range(9), (0, "x", 1), 48) == first
    assert mismatch(rows, range(9), (0, "x", 2), 48) != first
    assert mismatch(rows, range(9), (1, "x", 1), 48) != first


def test_a_prompt_too_long_for_another_answer_loses_its_beginning() -> None:
    long, short = row("a", 1, 6), EncodedRow("b", Encoded([9], [2, 3, 4], [False, True, True, True]), True)
    pairs = {pair.completion_ids[0]: pair for pair in mismatch([long, short], [0, 1], (0, "x"), 5)}
    assert pairs[2].input_ids == [104, 105, 2, 3, 4]
    assert pairs[1].input_ids == [9, 1]


def test_steps_are_those_of_the_order_and_do_not_depend_on_micro_batches() -> None:
    steps = training_steps(ROWS, CONFIG, seed=0)
    assert len(steps) == 3
    assert sorted(i for step in steps for i in step.rows) == list(range(24))
    micro = KTOConfig(batch_size=8, max_length=48, micro_batch_size=2)
    assert training_steps(ROWS, micro, seed=0) == steps
    assert training_steps(ROWS, CONFIG, seed=1) != steps
    epochs = training_steps(ROWS, KTOConfig(batch_size=8, max_length=48, epochs=2), seed=0)
    assert epochs[:3] == steps


@pytest.mark.parametrize("label", [True, False])
def test_rows_of_one_label_alone_are_refused(label: bool) -> None:
    rows, _ = encode_unpaired([Unpaired("p", "Blue.", label), Unpaired("q", "Red.", label)], TOKENS, CONFIG)
    name = "desirable" if label else "undesirable"
    with pytest.raises(DataError, match=f"kto has 2 rows and all are {name}") as caught:
        training_steps(rows, CONFIG, seed=0)
    assert "add rows of the other label" in caught.value.remedy
    with pytest.raises(DataError, match="kto has no row to train on"):
        training_steps([], CONFIG, seed=0)


def test_desirable_completions_that_are_always_cut_are_refused() -> None:
    long = "I cannot help with that. " * 12
    rows = [Unpaired("p", long, True), Unpaired("q", "Blue.", False), Unpaired("r", "Red.", False)]
    with pytest.raises(DataError, match="cuts 1 of 1 chosen completions, but 0 of 2 rejected ones"):
        encode_unpaired(rows, TOKENS, CONFIG)
    assert encode_unpaired(rows, TOKENS, CONFIG, strict=False)[1].chosen == 1


def test_the_point_is_that_of_the_whole_step_whatever_the_micro_batches() -> None:
    model, other = tiny.model(TOKENS, seed=1), tiny.model(TOKENS, seed=2)
    step = training_steps(ROWS, CONFIG, seed=0)[0]
    assert len(step.mismatched) == 8
    # The reference of highest log-probs is taken off, so that the mean is above 0.
    reference = row_logprobs(other, TOKENS, step.mismatched, "fp32") - 5
    with torch.no_grad():
        own = [completion_logprobs(model, TOKENS, [pair], "fp32")[0].item() for pair in step.mismatched]
    expected = sum(p - r for p, r in zip(own, reference.tolist(), strict=True)) / 8
    assert expected > 0
    for size in (0, 1, 3, 8):
        point = step_point(model, TOKENS, step.mismatched, reference, "fp32", size)
        assert point.item() == pytest.approx(expected, rel=1e-4)
        assert not point.requires_grad
    assert step_point(model, TOKENS, step.mismatched, reference + 100, "fp32", 0).item() == 0
    assert step_point(model, TOKENS, [], torch.zeros(0), "fp32", 0).item() == 0


def test_the_point_is_measured_without_dropout_and_leaves_the_model_in_training() -> None:
    pytest.importorskip("peft")
    adapted = attach(tiny.model(TOKENS), LoraConfig(rank=2, alpha=4.0, dropout=0.5), seed=0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    step = training_steps(ROWS, CONFIG, seed=0)[0]
    reference = row_logprobs(tiny.model(TOKENS), TOKENS, step.mismatched, "fp32") - 50
    adapted.train()
    points = {step_point(adapted, TOKENS, step.mismatched, reference, "fp32", 0).item() for _ in range(3)}
    assert len(points) == 1
    assert adapted.training
    adapted.eval()
    step_point(adapted, TOKENS, step.mismatched, reference, "fp32", 0)
    assert not adapted.training


def test_held_out_figures_by_hand() -> None:
    config = KTOConfig(max_length=48, beta=0.3, desirable_weight=1.2, undesirable_weight=0.8)
    model, other = tiny.model(TOKENS, seed=1), tiny.model(TOKENS, seed=2)
    rows = ROWS[:7]
    steps = held_out_step(rows, config, seed=0)
    reference = kto_reference(other, TOKENS, rows, steps, "fp32")

    def logprob(tokens: Encoded) -> float:
        with torch.no_grad():
            return completion_logprobs(model, TOKENS, [tokens], "fp32")[0].item()

    gaps = [
        logprob(pair) - r
        for pair, r in zip(steps[0].mismatched, reference.mismatched[0].tolist(), strict=True)
    ]
    point = max(0.0, sum(gaps) / len(gaps))
    losses, right = [], 0
    for each, against in zip(rows, reference.rows.tolist(), strict=True):
        gain = 0.3 * (logprob(each.tokens) - against - point)
        sign, weight = (1, 1.2) if each.desirable else (-1, 0.8)
        losses.append(weight * (1 - 1 / (1 + math.exp(-sign * gain))))
        right += sign * gain > 0
    figures = held_out_figures(model, TOKENS, rows, steps, reference, config, "fp32")
    good = [logprob(each.tokens) for each in rows if each.desirable]
    assert figures["loss"] == pytest.approx(sum(losses) / 7, rel=1e-4)
    assert figures["reference_point"] == pytest.approx(point, rel=1e-4, abs=1e-6)
    assert figures["accuracy"] == pytest.approx(right / 7)
    assert figures["chosen_logprob"] == pytest.approx(sum(good) / len(good), rel=1e-4)
    nothing = kto_reference(other, TOKENS, [], [], "fp32")
    assert (
        held_out_figures(model, TOKENS, [], held_out_step([], config, seed=0), nothing, config, "fp32") == {}
    )


def test_a_step_of_one_label_says_nothing_about_the_other() -> None:
    model = tiny.model(TOKENS)
    rows = [row for row in ROWS if row.desirable][:3]
    steps = [KTOStep([0, 1, 2], [])]
    reference = kto_reference(model, TOKENS, rows, steps, "fp32")
    figures = held_out_figures(model, TOKENS, rows, steps, reference, CONFIG, "fp32")
    assert "chosen_logprob" in figures
    assert "rejected_logprob" not in figures
    # Without a mismatched pair the point is 0, and the policy is the reference.
    assert figures["reference_point"] == 0
    assert figures["loss"] == pytest.approx(0.5, rel=1e-5)


def test_the_point_that_is_logged_does_not_depend_on_accumulation(tmp_path: Path) -> None:
    # Large steps, so that the policy has left the reference and the point is above 0.
    common = {**SMOOTH, "steps": 4, "batch_size": 8, "learning_rate": 3.0}
    found = []
    for size in (0, 1, 2):
        recorder = StopAfter()
        kto(tmp_path / str(size), recorder, micro_batch_size=size, **common)
        found.append([row["reference_point"] for row in recorder.rows])
    assert max(found[0]) > 1e-3
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-3, abs=1e-5)
