"""The last block computed where it is wanted, against the whole of it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from prefloop.models import ragged
from prefloop.models.forward import hidden_states, preceding, token_logprobs
from prefloop.models.last_block import is_plain, narrowed
from prefloop.models.layout import Layout
from prefloop.models.ragged import narrows, reads_flat
from prefloop.models.reward_model import RewardModel
from prefloop.models.shared_prompt import Tree, tree_logprobs, tree_scores
from tests import tiny

BATCH = torch.tensor([[3, 9, 4, 17, 5, 8, 2], [6, 2, 11, 0, 0, 0, 0], [12, 7, 7, 1, 0, 0, 0]])
REAL = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 4 + [False] * 3])
WANTED = torch.tensor([[False] * 4 + [True] * 3, [False] * 7, [False, False, True, True] + [False] * 3])
TREES = [Tree([3, 9, 4], [[17, 5], [8, 2, 6]]), Tree([], [[12, 7, 1]])]
FLAGS = [[True, True], [False, True, True], [False, False, True]]


@contextmanager
def whole() -> Iterator[None]:
    with mock.patch.object(ragged, "narrows", return_value=False):
        yield


def learned(model: Any) -> list[Tensor]:
    """Log-probs of rows and trees, and the gradients of their sum."""
    logprobs, entropy = token_logprobs(model, BATCH, REAL, WANTED, with_entropy=True)
    trees = tree_logprobs(model, TREES, FLAGS, 0, "fp32")
    (logprobs.sum() + trees.sum()).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [logprobs, entropy, trees, *gradients]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_is_wanted_is_what_the_whole_block_gives(kind: str) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind).double().train()
    assert narrows(model.base_model)
    found = learned(model)
    with whole():
        expected = learned(model)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_scores_are_those_of_the_whole_block(kind: str, tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "trunk", kind=kind, layers=2)
    model = RewardModel.create(folder, seed=0).model.double().train()
    trees = [*TREES, Tree([5, 6, 7, 8, 2], [[9, 9, 9, 1], [11], [3, 4]])]
    assert narrows(model.base_model)
    asked = list[bool]()

    def scored() -> list[Tensor]:
        model.zero_grad()
        scores = tree_scores(model, trees, 0, "fp32")
        (scores * torch.arange(1.0, len(scores) + 1).unsqueeze(1)).sum().backward()
        return [scores, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    own = Layout.where_asked

    def noted(layout: Layout, wanted: Tensor) -> Layout:
        found = own(layout, wanted)
        asked.append(found.asked is not None)
        return found

    with mock.patch.object(Layout, "where_asked", noted):
        found = scored()
    assert asked
    assert all(asked)
    with whole():
        expected = scored()
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_feed_forward_layer_sees_the_wanted_tokens_alone() -> None:
    model = tiny.model(tiny.tokenizer(), layers=2)
    assert reads_flat(model.base_model)
    assert narrows(model.base_model)
    seen = list[int]()
    for block in (model.base_model.layers[0], model.base_model.layers[-1]):
        block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    token_logprobs(model, BATCH, REAL, WANTED)
    assert seen == [int(REAL.sum()), int(WANTED.sum())]
    before = preceding(WANTED)
    hidden = hidden_states(model, BATCH, REAL, wanted=before)
    torch.testing.assert_close(hidden[before], hidden_states(model, BATCH, REAL)[before])
    assert not hidden[~before].any()


def test_a_block_gives_every_token_again_afterwards_though_a_pass_fails() -> None:
    trunk = tiny.model(tiny.tokenizer()).base_model
    ids = torch.tensor([[3, 1, 2]])
    own = trunk(input_ids=ids).last_hidden_state
    with narrowed(trunk, torch.tensor([1])):
        assert trunk(input_ids=ids).last_hidden_state.shape[1] == 1
        with pytest.raises(IndexError):
            trunk(input_ids=torch.tensor([[10**6]]))
    assert torch.equal(trunk(input_ids=ids).last_hidden_state, own)
    assert is_plain(trunk)
    other = copy.deepcopy(trunk)
    with narrowed(trunk, torch.tensor([1])):
        assert torch.equal(other(input_ids=ids).last_hidden_state, own), "a copy is narrowed by itself"


def test_blocks_of_other_parts_stay_whole() -> None:
    model = tiny.model(tiny.tokenizer(), kind="gpt2")
    assert not narrows(model.base_model)
    logprobs, _ = token_logprobs(model, BATCH, REAL, WANTED)
    assert torch.isfinite(logprobs).all()


def test_a_block_that_adds_otherwise_is_found_out() -> None:
    model = tiny.model(tiny.tokenizer())
    trunk = model.base_model
    own = type(trunk.layers[-1]).forward

    def doubled(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        outcome: Tensor = 2 * own(self, *args, **kwargs)
        return outcome

    with mock.patch.object(type(trunk.layers[-1]), "forward", doubled):
        assert is_plain(trunk)
        assert not narrows(trunk)


def test_where_something_hooks_into_the_trunk_it_sees_every_token() -> None:
    model = tiny.model(tiny.tokenizer())
    handle = model.base_model.register_forward_pre_hook(lambda *_: None)
    assert not narrows(model.base_model)
    handle.remove()
    assert narrows(model.base_model)


def test_a_block_that_is_computed_again_in_the_backward_pass_stays_whole() -> None:
    model = tiny.model(tiny.tokenizer()).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert not narrows(model.base_model)
    model.gradient_checkpointing_disable()
    assert narrows(model.base_model)
