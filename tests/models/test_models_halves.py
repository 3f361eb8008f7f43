"""Two halves of a batch in a thread each, against the whole batch in one."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from prefloop.config.sft import SFTConfig
from prefloop.config.training import LoraConfig
from prefloop.data.templates import Encoded
from prefloop.models import halves as room
from prefloop.models.adapters import attach
from prefloop.models.forward import passes_of
from prefloop.models.halves import halves, together
from prefloop.models.last_block import narrowed
from prefloop.models.reward_model import RewardModel
from prefloop.models.shared_prompt import Tree, tree_logprobs, tree_scores
from prefloop.training.direct import completion_logprobs
from prefloop.training.language_model import TokenRows
from tests import tiny

TOKENS = tiny.tokenizer()
TREES = [Tree([3, 9, 4], [[17, 5], [8, 2, 6]]), Tree([], [[12, 7, 1]]), Tree([5, 5], [[2], [9, 1]])]
FLAGS = [[True, True], [False, True, True], [False, False, True], [True], [True, False]]
ROWS = [
    Encoded(ids[:2], ids[2:], [False, False] + [True] * (len(ids) - 2))
    for ids in ([3, 9, 4, 17, 5, 8, 2], [6, 2, 11], [12, 7, 7, 1], [3, 3, 9, 9, 9], [1, 2, 3, 4, 5, 6])
]


@contextmanager
def halved(threads: int = 2) -> Iterator[mock.Mock]:
    """Batches of a few tokens are halved, too; yields what counts how often."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            mock.patch.object(room, "TOKENS", 1),
            mock.patch.object(room, "together", side_effect=together) as counted,
        ):
            yield counted
        assert torch.get_num_threads() == threads, "the caller has its threads back"
    finally:
        torch.set_num_threads(before)


def policy(kind: str = "llama") -> Any:
    return tiny.model(TOKENS, kind=kind, layers=2).double().train()


def trees(model: Any) -> Tensor:
    return tree_logprobs(model, TREES, FLAGS, 0, "fp32")


def rows(model: Any) -> Tensor:
    return completion_logprobs(model, TOKENS, ROWS, "fp32")[0]


def demonstrations(model: Any) -> Tensor:
    learned = TokenRows(model, TOKENS, ROWS, SFTConfig(), (0, "sft"), "fp32")
    return torch.stack([part.loss for part in learned.parts(range(len(ROWS)), 0, 0)])


def learned(model: Any, what: Callable[[Any], Tensor]) -> list[Tensor]:
    found = what(model)
    (found.sum() + found.square().sum()).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    return [found.detach(), *gradients]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("what", [trees, rows, demonstrations])
def test_what_is_learned_is_what_the_whole_batch_gives(what: Callable[[Any], Tensor], kind: str) -> None:
    model = policy(kind)
    whole = learned(model, what)
    with halved() as counted:
        found = learned(model, what)
    assert counted.call_count == 2, "forward and backward"
    assert len(found) == len(whole) > 10
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("what", [trees, rows, demonstrations])
def test_threads_leave_no_trace(what: Callable[[Any], Tensor]) -> None:
    model = policy().float()
    with halved(threads=1):
        expected = learned(model, what)
    with halved():
        for _ in range(5):
            for one, other in zip(learned(model, what), expected, strict=True):
                assert torch.equal(one, other)


def test_scores_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    folder = tiny.saved(tmp_path / "trunk", layers=2)
    model = RewardModel.create(folder, seed=0).model.double().train()
    whole = learned(model, lambda one: tree_scores(one, TREES, 0, "fp32"))
    with halved() as counted:
        found = learned(model, lambda one: tree_scores(one, TREES, 0, "fp32"))
    assert counted.call_count == 2
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_without_gradient_the_same_is_given_and_nothing_recorded() -> None:
    model = policy()
    expected = rows(model).detach()
    with halved() as counted, torch.no_grad():
        found = rows(model)
    assert counted.call_count == 1
    assert not found.requires_grad
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_an_adapter_alone_learns_what_it_does_on_the_whole_batch() -> None:
    model = attach(tiny.model(TOKENS, layers=2), LoraConfig(rank=2), seed=0).double().train()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(1))
    whole = learned(model, rows)
    with halved() as counted:
        found = learned(model, rows)
    assert counted.call_count == 2
    assert len(found) == len(whole)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_gradients_add_up_over_passes_and_run_once() -> None:
    model = policy()
    one = learned(model, rows)
    with halved():
        rows(model).sum().backward()
        first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        again = rows(model).sum()
        again.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="once"):
            again.backward()
    second = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(first) == len(one) - 1
    for before, after in zip(first, second, strict=True):
        torch.testing.assert_close(after, 2 * before)


def test_halves_are_alike_and_hold_each_row_once() -> None:
    trunk = policy().base_model
    lengths = [300, 20, 31, 280, 90, 100, 5, 44]
    found = halves(trunk, lengths)
    assert found is not None
    assert sorted(found[0] + found[1]) == list(range(8))
    # Ascending 5 20 31 44 90 100 280 300: of each four the outer two, the inner two.
    assert [[lengths[i] for i in half] for half in found] == [[5, 90, 44, 300], [20, 100, 31, 280]]


def test_what_is_small_alone_or_kept_twice_stays_whole() -> None:
    trunk = policy().base_model
    assert halves(trunk, [255, 256]) is None
    assert halves(trunk, [256, 256]) is not None
    assert halves(trunk, [900]) is None
    with mock.patch.object(room, "WEIGHTS", 100):
        assert halves(trunk, [900, 900]) is None


def test_a_batch_of_several_passes_takes_them_one_after_the_other() -> None:
    assert [len(groups) for groups in passes_of(policy(), [2000, 2000, 2000, 2000])] == [1, 1]
    assert [len(groups) for groups in passes_of(policy(), [1000, 1000])] == [2]


def test_a_model_that_is_hooked_into_or_computes_again_stays_whole() -> None:
    model = policy()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert len(passes_of(model, [1000, 1000])[0]) == 1
    model = policy()
    model.base_model.register_forward_pre_hook(lambda *_: None)
    assert len(passes_of(model, [1000, 1000])[0]) == 1


def test_what_fails_in_either_is_raised_when_both_have_ended() -> None:
    ended = threading.Event()

    def fails() -> int:
        raise MemoryError("no more")

    def slow() -> int:
        threading.Event().wait(0.2)
        ended.set()
        return 1

    for calls in ([fails, slow], [slow, fails]):
        ended.clear()
        with halved(), pytest.raises(MemoryError, match="no more"):
            together(calls)
        assert ended.is_set()


def test_passes_of_two_threads_narrow_the_same_block_each_for_itself() -> None:
    trunk = policy().base_model
    both, states = threading.Barrier(2), torch.randn(1, 6, 16, dtype=torch.float64)

    def given(wanted: list[int]) -> Tensor:
        places = torch.arange(6).unsqueeze(0)
        told = {"position_embeddings": trunk.rotary_emb(states, places), "attention_mask": None}
        with narrowed(trunk, torch.tensor(wanted)):
            both.wait(20)
            outcome: Tensor = trunk.layers[-1](states, **told)
            both.wait(20)
        return outcome

    with halved(), torch.no_grad():
        one, other = together([lambda: given([5]), lambda: given([0, 3, 5])])
    assert (one.shape[1], other.shape[1]) == (1, 3)
    torch.testing.assert_close(one[:, 0], other[:, 2])


def test_a_fork_has_a_thread_of_its_own() -> None:
    model = policy().float()
    with halved():
        expected = learned(model, rows)
        child = os.fork()
        if child == 0:
            same = all(map(torch.equal, learned(model, rows), expected))
            os._exit(0 if same else 1)
        _, status = os.waitpid(child, 0)
    assert status == 0
