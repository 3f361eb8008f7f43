"""Log-probs of the reference: with adapters off, computed once, and kept by content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefloop.config.dpo import DPOConfig
from prefloop.config.training import LoraConfig
from prefloop.data.templates import Encoded
from prefloop.models.adapters import attach
from prefloop.training import reference as reference_module
from prefloop.training.direct import completion_logprobs
from prefloop.training.pairs import EncodedComparison, encode_comparisons
from prefloop.training.reference import reference_logprobs, row_logprobs, weights_hash
from tests import tiny
from tests.training.trainings import RANKINGS

TOKENS = tiny.tokenizer()


def policy(seed: int = 0) -> PreTrainedModel:
    return tiny.model(TOKENS, seed=seed)


def encoded() -> list[EncodedComparison]:
    return encode_comparisons(RANKINGS, TOKENS, DPOConfig(max_length=48))[0]


def test_the_reference_of_an_adapted_model_is_the_model_below() -> None:
    pytest.importorskip("peft")
    adapted = attach(policy(), LoraConfig(rank=2, alpha=4.0), seed=0)
    assert weights_hash(adapted) == weights_hash(policy())
    rows = [row for comparison in encoded()[:3] for row in comparison.completions]
    before = row_logprobs(policy(), TOKENS, rows, "fp32")
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    assert weights_hash(adapted) == weights_hash(policy())
    assert torch.equal(row_logprobs(adapted, TOKENS, rows, "fp32"), before)
    with torch.no_grad():
        moved, _ = completion_logprobs(adapted, TOKENS, rows, "fp32")
    assert not torch.allclose(moved, before, atol=1e-2)


def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the rows that go through the model from here on."""
    counts: list[int] = []
    inner = reference_module.completion_logprobs

    def counting(model: Any, tokens: Any, rows: Any, *rest: Any) -> Any:
        counts.append(len(rows))
        return inner(model, tokens, rows, *rest)

    monkeypatch.setattr(reference_module, "completion_logprobs", counting)
    return counts


def test_reference_log_probs_are_computed_once_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = computed(monkeypatch)
    comparisons = encoded()
    completions = sum(len(c.completions) for c in comparisons)
    first = reference_logprobs(policy(), TOKENS, comparisons, "fp32", tmp_path)
    assert sum(counts) == completions
    again = reference_logprobs(policy(), TOKENS, comparisons, "fp32", tmp_path)
    assert sum(counts) == completions
    assert [x.shape for x in again] == [(len(c.completions),) for c in comparisons]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    assert not list(reference_logprobs(policy(), TOKENS, [], "fp32", tmp_path))


def test_other_weights_tokens_or_precision_have_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encoded()[0].completions
    model = policy()
    row_logprobs(model, TOKENS, rows, "fp32", tmp_path)
    counts = computed(monkeypatch)
    moved = Encoded(
        rows[0].input_ids[:-1], rows[0].input_ids[-1:], [False] * (len(rows[0].input_ids) - 1) + [True]
    )
    other = [
        (policy(1), rows, "fp32", ""),
        (model, rows[:-1], "fp32", ""),
        (model, rows[::-1], "fp32", ""),
        (model, [moved, *rows[1:]], "fp32", ""),
        (model, rows, "bf16", ""),
        (model, rows, "fp32", "a hash that the caller knows"),
    ]
    for n, (weights, asked, precision, known) in enumerate(other, start=2):
        row_logprobs(weights, TOKENS, asked, precision, tmp_path, weights=known)
        assert len(list(tmp_path.iterdir())) == n
    assert len(counts) == len(other)
    row_logprobs(model, TOKENS, rows, "fp32", tmp_path, weights=weights_hash(model))
    assert len(counts) == len(other)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "of other rows"])
def test_a_damaged_file_is_computed_again(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = encoded()[0].completions
    model = policy()
    expected = row_logprobs(model, TOKENS, rows, "fp32", tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    content = bytearray(whole)
    if damage == "truncated":
        file.write_bytes(content[:-3])
    elif damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        row_logprobs(model, TOKENS, rows[:1], "fp32", tmp_path / "other")
        (other,) = (tmp_path / "other").iterdir()
        other.replace(file)
        other.parent.rmdir()
    counts = computed(monkeypatch)
    assert torch.equal(row_logprobs(model, TOKENS, rows, "fp32", tmp_path), expected)
    assert counts
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file]


def test_a_configuration_that_changes_what_is_computed_changes_the_hash() -> None:
    model = policy()
    before = weights_hash(model)
    model.config.rms_norm_eps = 0.5
    assert weights_hash(model) != before
