"""Trainings on preferences that read a prompt once take the steps of those that read it with each answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefloop.config.dpo import DPOConfig
from prefloop.config.training import LoraConfig
from prefloop.data.comparisons import Ranking
from prefloop.data.templates import Encoded
from prefloop.errors import StopRequested
from prefloop.models import ragged
from prefloop.training.direct import completion_logprobs, policy_pairs
from prefloop.training.dpo import held_out_figures
from prefloop.training.pairs import EncodedComparison, encode_comparisons
from prefloop.training.reference import reference_logprobs
from prefloop.training.shared_prompts import with_shared_prompts
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import RANKINGS, SMOOTH, TRAININGS

TOKENS = tiny.tokenizer()
LORA = LoraConfig(rank=2, alpha=4.0)
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("dpo", {"nll_coef": 0.3, "label_smoothing": 0.1}),
    ("dpo", {"loss": "ipo", "ipo_logprobs": "mean"}),
    ("dpo", {"loss": "hinge", "gradient_checkpointing": True}),
    ("dpo", {"loss": "robust", "label_smoothing": 0.1, "lora": LORA}),
    ("orpo", {}),
    ("simpo", {"pairs_per_prompt": 1}),
]


def policy(kind: str = "llama", seed: int = 0) -> PreTrainedModel:
    return tiny.model(TOKENS, kind=kind, seed=seed)


def config(share: str = "on", **changes: Any) -> DPOConfig:
    return DPOConfig(**{"max_length": 48, "share_prompt": share, **changes})


def encoded(rankings: list[Ranking] = RANKINGS) -> list[EncodedComparison]:
    return encode_comparisons(rankings, TOKENS, config())[0]


def shared(
    comparisons: list[EncodedComparison], model: PreTrainedModel | None = None
) -> list[EncodedComparison]:
    return with_shared_prompts(comparisons, model or policy(), TOKENS, config())


def test_a_tree_holds_the_completions_and_shares_nothing_trainable() -> None:
    for before, after in zip(encoded(), shared(encoded()), strict=True):
        (tree,) = after.trees
        assert [[*tree.prefix, *branch] for branch in tree.branches] == [
            row.input_ids for row in before.completions
        ]
        # Some of these answers begin alike.
        assert list(tree.prefix) == before.completions[0].prompt_ids
        assert after.pairs == before.pairs
    assert len({tuple(row.completion_ids[:2]) for row in encoded()[0].completions}) < 3


def test_prompts_are_shared_where_that_pays_and_the_model_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Ranking("What colour is the lamp? " * 2, ["Blue.", "Red.", "Red, I think."], [0, 1, 2])
    short = Ranking("a", ["It is red, I think. " * 2, "I cannot help with that. " * 2], [0, 1])

    def found(share: str, rankings: list[Ranking], kind: str = "llama", **changes: Any) -> list[int]:
        rows = with_shared_prompts(encoded(rankings), policy(kind), TOKENS, config(share, **changes))
        return [len(row.trees) for row in rows]

    assert found("auto", [long, short]) == [1, 1]
    assert found("on", [long, short]) == [1, 1]
    assert found("off", [long, short]) == [0, 0]
    # Where trees are padded and masked, a short prompt of long completions is not worth it.
    with monkeypatch.context() as patch:
        patch.setattr(ragged, "attends_plainly", lambda trunk: False)
        assert found("auto", [long, short]) == [1, 2]
        assert found("on", [long, short]) == [1, 1]
        assert found("auto", [short]) == [0]
    assert found("on", [long, short], "mistral") == [0, 0]
    assert found("on", [long, short], "gemma3_text") == [0, 0]
    # The masks of a conversation are its own, those of its prompt, too.
    assert found("on", [long, short], lora=LoraConfig(rank=2, dropout=0.1)) == [0, 0]
    assert found("on", [long, short], lora=LORA) == [1, 1]
    assert with_shared_prompts([], policy(), TOKENS, config()) == []
    given = shared(encoded([long, short]))
    assert with_shared_prompts(given, policy(), TOKENS, config("off")) == given


def test_fewer_tokens_go_through_the_model_and_log_probs_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = policy(), list[int]()
    forward = model.base_model.forward

    def counted(**inputs: Any) -> Any:
        seen.append(inputs["input_ids"].numel())
        return forward(**inputs)

    monkeypatch.setattr(model.base_model, "forward", counted)
    apart = policy_pairs(model, TOKENS, encoded(), "fp32")
    counts, together = sum(seen), shared(encoded(), model)
    seen.clear()
    found = policy_pairs(model, TOKENS, together, "fp32")
    assert sum(seen) < 0.8 * counts
    for name in ("chosen", "rejected", "chosen_mean", "rejected_mean"):
        torch.testing.assert_close(getattr(found, name), getattr(apart, name), atol=1e-5, rtol=1e-6)
    for name in ("chosen_lengths", "rejected_lengths", "better", "worse"):
        assert torch.equal(getattr(found, name), getattr(apart, name))


def test_a_completion_without_a_token_and_one_alone_have_their_places() -> None:
    rows = [Encoded([5, 6], [], [False, False]), Encoded([5, 6], [7], [False, False, True])]
    other = [Encoded([8, 9], [10, 11], [False, False, True, True])]
    given = [EncodedComparison(rows, [(1, 0)], 1.0), EncodedComparison(other, [(0, 0)], 1.0)]
    trees = [tree for comparison in shared(given) for tree in comparison.trees]
    assert [len(tree.branches) for tree in trees] == [2, 1]
    sums, lengths = completion_logprobs(policy(), TOKENS, rows + other, "fp32", trees)
    expected, counts = completion_logprobs(policy(), TOKENS, rows + other, "fp32")
    assert lengths.tolist() == counts.tolist() == [0, 1, 2]
    torch.testing.assert_close(sums, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=str)
def test_a_training_takes_the_same_steps(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    common = {"steps": 3, **SMOOTH, **changes}
    apart, together = StopAfter(), StopAfter()
    one = TRAININGS[name](tmp_path / "apart", apart, share_prompt="off", **common)
    other = TRAININGS[name](tmp_path / "shared", together, share_prompt="on", **common)
    # Another way of computing: the last bits differ.
    assert any(not torch.equal(one[key], other[key]) for key in one)
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=0)
    for a, b in zip(apart.rows, together.rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_eight_micro_batches_of_one_are_one_of_eight_with_shared_prompts(tmp_path: Path) -> None:
    common = {"steps": 1, "batch_size": 8, "share_prompt": "on", **SMOOTH}
    whole, parts = StopAfter(), StopAfter()
    one = TRAININGS["dpo"](tmp_path / "whole", whole, micro_batch_size=0, **common)
    other = TRAININGS["dpo"](tmp_path / "parts", parts, micro_batch_size=1, **common)
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-6, rtol=0)
    assert whole.rows[0] == pytest.approx(parts.rows[0], rel=1e-3, abs=1e-5)


def test_a_stopped_training_with_shared_prompts_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole, first, second = StopAfter(), StopAfter(2), StopAfter()
    expected = TRAININGS["dpo"](tmp_path / "whole", whole, share_prompt="on")
    with pytest.raises(StopRequested, match="step 2"):
        TRAININGS["dpo"](tmp_path / "stopped", first, share_prompt="on")
    found = TRAININGS["dpo"](tmp_path / "stopped", second, share_prompt="on")
    assert second.resumed_at == 2
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert first.rows + second.rows == whole.rows


def test_the_reference_reads_the_same_trees_and_its_file_is_their_own(tmp_path: Path) -> None:
    model, apart = policy(seed=1), encoded()
    together = shared(apart, model)
    expected = reference_logprobs(model, TOKENS, apart, "fp32", tmp_path)
    found = reference_logprobs(model, TOKENS, together, "fp32", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert [len(own) for own in found] == [len(own) for own in expected]
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), atol=2e-5, rtol=0)
    again = reference_logprobs(model, TOKENS, together, "fp32", tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert len(list(tmp_path.iterdir())) == 2
    figures = held_out_figures(model, TOKENS, together, found, config(beta=1.0), "fp32")
    assert figures["margin"] == pytest.approx(0, abs=1e-4)
