"""A prompt encoded once gives what conversations encoded apart give: scores, log-probs and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefloop.config.training import LoraConfig
from prefloop.models.adapters import attach
from prefloop.models.reward_model import RewardModel
from prefloop.models.shared_prompt import (
    Tree,
    can_share,
    padded_trees,
    tree_logprobs,
    tree_of,
    tree_scores,
    trees_of,
)
from tests import tiny

FULL = ["llama", "qwen3", "gpt2"]
SEQUENCES = [
    [[7, 8, 9, 10, 11], [7, 8, 9, 12, 13, 14, 15], [7, 8, 9, 10]],
    [[20, 21, 22], [20, 23]],
    [[30, 31, 32, 33], [34, 35]],  # nothing in common
    [[40, 41, 42, 43, 44, 45]],  # alone
]
COMPLETIONS = [
    ([7, 8, 9], [[10, 11, 12], [13]]),
    ([7, 8], [[20, 21, 22, 23], [20, 21, 24], [20], [25, 26, 27, 28, 29, 30]]),  # some begin alike
    ([5], [[6, 7], [6, 7]]),
    ([40, 41, 42, 43], [[44, 45]]),
]
TREES = [tree_of([prompt + own for own in several], len(prompt)) for prompt, several in COMPLETIONS]


def reward_model(folder: Path, kind: str, heads: int = 1) -> RewardModel:
    return RewardModel.create(tiny.saved(folder / kind, kind=kind, layers=2), seed=0, heads=heads).eval()


def pad_id(model: RewardModel) -> int:
    return int(model.tokenizer.pad_token_id)


def gradients(model: nn.Module, scores: Tensor) -> dict[str, Tensor]:
    """Of a mean that weighs every score differently."""
    model.zero_grad(set_to_none=True)
    weights = torch.arange(1.0, scores.numel() + 1).reshape(scores.shape)
    (scores * weights / weights.sum()).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", FULL)
def test_scores_and_gradients_are_those_of_conversations_apart(kind: str, tmp_path: Path) -> None:
    model = reward_model(tmp_path, kind, heads=2)
    assert can_share(model.model, pad_id(model))
    apart = model([ids for sequences in SEQUENCES for ids in sequences])
    expected = gradients(model, apart)
    shared = tree_scores(model.model, [tree_of(s) for s in SEQUENCES], pad_id(model), "fp32")
    found = gradients(model, shared)
    assert shared.shape == (8, 2)
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=0)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=0, msg=name)
    assert max(float(g.abs().max()) for g in expected.values()) > 0.1


def language_model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return tiny.model(tiny.tokenizer(), kind=kind, layers=2).to(dtype)


def logprobs_apart(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Of each token of a completion, from the whole conversation's logits."""
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    predicted = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return predicted.gather(-1, torch.tensor(completion)[:, None])[:, 0]


# Norms and rotations of llama and qwen3 are computed in float32 whatever the weights are.
@pytest.mark.parametrize(
    ("kind", "dtype", "tolerance"),
    [
        ("gpt2", torch.float64, 1e-12),
        ("llama", torch.float64, 1e-6),
        *((kind, torch.float32, 1e-5) for kind in FULL),
    ],
)
def test_log_probs_and_gradients_are_those_of_conversations_apart(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = language_model(kind, dtype)
    wanted = [[n % 3 != 1 for n in range(len(branch))] for tree in TREES for branch in tree.branches]
    every = [[True] * len(flags) for flags in wanted]
    tokens = [logprobs_apart(model, prompt, own) for prompt, several in COMPLETIONS for own in several]
    for asked in (every, wanted):
        apart = torch.stack([own[torch.tensor(f)].sum() for own, f in zip(tokens, asked, strict=True)])
        shared = tree_logprobs(model, TREES, asked, 0, "fp32")
        assert shared.dtype == dtype
        torch.testing.assert_close(shared, apart, atol=tolerance, rtol=0)
        model.zero_grad(set_to_none=True)
        gradient = torch.autograd.grad(shared.square().sum(), list(model.parameters()))
        expected = torch.autograd.grad(apart.square().sum(), list(model.parameters()), retain_graph=True)
        for found, value in zip(gradient, expected, strict=True):
            scale = max(float(value.abs().max()), 1.0)
            torch.testing.assert_close(found, value, atol=tolerance * scale, rtol=0)


def test_where_nothing_is_wanted_log_probs_are_zero() -> None:
    model = language_model("llama")
    nothing = [[False] * len(branch) for tree in TREES for branch in tree.branches]
    found = tree_logprobs(model, TREES, nothing, 0, "fp32")
    assert found.tolist() == [0.0] * 9
    found.sum().backward()
    # Before the first token of all there is nothing that could predict it.
    alone = tree_logprobs(model, [Tree([], [[5], [5, 6]])], [[True], [True, True]], 0, "fp32")
    assert alone[0] == 0
    torch.testing.assert_close(alone[1], logprobs_apart(model, [5], [6])[0], atol=1e-5, rtol=0)


def test_a_prefix_ends_where_it_is_told_to() -> None:
    assert [len(tree.prefix) for tree in TREES] == [3, 2, 1, 4]
    assert len(tree_of([[5, 6, 7], [5, 6, 8]], 9).prefix) == 2
    # Half of a conversation that is not to be shared decides whether a tree pays.
    one, other = [*range(100)], [*range(99), 200]
    assert len(trees_of([one, other], 128)) == 1
    assert len(trees_of([one, other], 128, longest=2)) == 2


@pytest.mark.parametrize("kind", [*FULL, "gemma3_text", "mistral"])
def test_a_language_model_shares_where_its_attention_is_full(kind: str) -> None:
    assert can_share(language_model(kind), 0) == (kind in FULL)


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_a_model_that_changes_its_logits_does_not_share(name: str) -> None:
    model = language_model("llama")
    setattr(model.config, name, 30.0)
    assert not can_share(model, 0)


def test_a_language_model_that_counts_positions_for_itself_does_not_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = language_model("gpt2")
    forward = model.base_model.forward
    monkeypatch.setattr(model.base_model, "forward", lambda position_ids=None, **rest: forward(**rest))
    assert not can_share(model, 0)


def test_an_adapter_is_read_through(tmp_path: Path) -> None:
    model = reward_model(tmp_path, "llama")
    model.model = attach(model.model, LoraConfig(rank=2, alpha=4.0), seed=0, task="SEQ_CLS")
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter += 0.05 * parameter.requires_grad
    assert can_share(model.model, pad_id(model))
    shared = tree_scores(model.model, [tree_of(s) for s in SEQUENCES], pad_id(model), "fp32")
    torch.testing.assert_close(shared, model([i for s in SEQUENCES for i in s]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["gemma3_text", "mistral"])
def test_windows_of_attention_are_not_shared(kind: str, tmp_path: Path) -> None:
    model = reward_model(tmp_path, kind)
    assert not can_share(model.model, pad_id(model))


def test_what_the_configuration_does_not_tell_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A trunk that counts positions for itself reads the second completion at the wrong ones.
    model = reward_model(tmp_path, "gpt2")
    trunk = model.model.base_model
    forward = trunk.forward
    monkeypatch.setattr(trunk, "forward", lambda position_ids=None, **rest: forward(**rest))
    assert not can_share(model.model, pad_id(model))


def test_what_stands_at_padding_changes_nothing(tmp_path: Path) -> None:
    model = reward_model(tmp_path, "llama")
    trees = [tree_of(s) for s in SEQUENCES]

    def scores() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            apart = model([ids for sequences in SEQUENCES for ids in sequences])
            return apart, tree_scores(model.model, trees, pad_id(model), "fp32")

    before = scores()
    with torch.no_grad():
        model.model.get_input_embeddings().weight[pad_id(model)] = 1e3
    for one, other in zip(before, scores(), strict=True):
        assert torch.equal(one, other)


def test_a_tree_by_hand() -> None:
    tree = tree_of([[5, 6, 7], [5, 6, 8, 9]])
    assert (list(tree.prefix), [list(b) for b in tree.branches]) == ([5, 6], [[7], [8, 9]])
    batch = padded_trees([tree, Tree([], [[3]])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [3, 0, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 3], [0, 0, 0, 0, 0]]
    assert (batch.rows.tolist(), batch.ends.tolist()) == ([0, 0, 1], [2, 4, 0])
    assert batch.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    # Nothing looks at padding but padding, which would otherwise look at nothing and be no number.
    assert batch.attention_mask[1, 0].int().tolist()[0] == [1, 0, 0, 0, 0]
    assert batch.attention_mask[1, 0].any(dim=-1).all()


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_tree_holds_its_sequences_and_the_longest_prefix(sequences: list[list[int]]) -> None:
    tree = tree_of(sequences)
    assert [[*tree.prefix, *branch] for branch in tree.branches] == sequences
    assert all(tree.branches)
    assert min(map(len, tree.branches)) == 1 or len({branch[0] for branch in tree.branches}) > 1


def test_trees_are_made_where_they_pay() -> None:
    short, long = list(range(4)), list(range(60))
    # By hand, at width 128, a token costs 1 + length / 512 in a sequence of that length: apart 2 x 24 tokens
    # at 1 + 24/512, which is 50.25; together 44 at 1 + 44/512, which is 47.78.
    assert len(trees_of([[*short, *range(100, 120)], [*short, *range(200, 220)]], 128)) == 1
    # Two completions of 60 after 4: 128 x 1.125 = 144 apart, 124 x 1.2422 = 154 together.
    tails = [[x + base for x in long] for base in (100, 200)]
    assert len(trees_of([[*short, *tail] for tail in tails], 128)) == 2
    assert len(trees_of([[*short, *tail] for tail in tails], 128, always=True)) == 1
