"""Sequences end to end against the same ones padded, and against attention written out."""

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefloop.models import layout as layouts
from prefloop.models import ragged
from prefloop.models.forward import (
    TOKENS_AT_ONCE,
    forward_groups,
    hidden_states,
    precision_context,
    token_logprobs,
)
from prefloop.models.layout import layout_of
from prefloop.models.ragged import flatten, reads_flat
from tests import tiny

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def attended(query: Tensor, key: Tensor, value: Tensor, sequences: list[list[int]]) -> Tensor:
    """Causal attention, one sequence and one query at a time: (N, H, D) each."""
    found = torch.zeros_like(query)
    for tokens in sequences:
        for place, token in enumerate(tokens):
            seen = tokens[: place + 1]
            scores = torch.einsum("hd,shd->hs", query[token], key[seen]) / query.shape[-1] ** 0.5
            found[token] = torch.einsum("hs,shd->hd", scores.softmax(dim=-1), value[seen])
    return found


def through(query: Tensor, key: Tensor, value: Tensor, layout: Any) -> Tensor:
    states = [x.transpose(0, 1).unsqueeze(0) for x in (query, key, value)]
    found, _ = ragged.attention(torch.nn.Module(), *states, None, layout=layout)
    return found[0]


@given(LENGTHS, st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_attention_is_within_each_sequence(lengths: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    states = [torch.randn(sum(lengths), 2, 4, generator=draw, dtype=torch.float64) for _ in range(3)]
    sequences = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    found = through(*states, layout_of(starts, lengths))
    torch.testing.assert_close(found, attended(*states, sequences))


@given(LENGTHS, st.data(), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_few_queries_find_what_all_do(lengths: list[int], data: st.DataObject, seed: int) -> None:
    draw, count = torch.Generator().manual_seed(seed), sum(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    states = [torch.randn(count, 2, 4, generator=draw, dtype=torch.float64) for _ in range(3)]
    for state in states:
        state.requires_grad_()
    layout = layout_of(starts, lengths)
    wanted = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=6))
    with mock.patch.object(layouts, "FEW", 1):
        few = layout.where_asked(torch.tensor(wanted))
    assert few.asked is not None
    found, everything = through(*states, few), through(*states, layout)
    torch.testing.assert_close(found[wanted], everything[wanted])
    assert not found[[i for i in range(count) if i not in wanted]].any()
    weight = torch.randn(len(wanted), 2, 4, generator=draw, dtype=torch.float64)
    expected = torch.autograd.grad((everything[wanted] * weight).sum(), states)
    for one, other in zip(torch.autograd.grad((found[wanted] * weight).sum(), states), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_queries_are_apart_where_they_are_few() -> None:
    layout = layout_of([0, 5], [5, 3])
    assert layout.where_asked(torch.tensor([4, 7])).asked is not None
    assert layout.where_asked(torch.tensor([7])).asked is not None
    assert layout.where_asked(torch.tensor([2, 3, 4, 7])).asked is None
    assert layout.where_asked(torch.tensor([], dtype=torch.long)).asked is None


def test_sequences_that_share_a_prefix_attend_to_it_and_to_themselves() -> None:
    # 0 1 2 | 3 4 | 5 and, without a prefix of its own, 6 7
    states = [torch.randn(8, 1, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    layout = layout_of([3, 5, 6], [2, 1, 2], [0, 0, 6], [3, 3, 0])
    assert layout.rows == 3
    expected = attended(*states, [[0, 1, 2, 3, 4], [0, 1, 2, 5], [6, 7]])
    found = through(*states, layout)
    torch.testing.assert_close(found, expected)
    towards = torch.randn_like(expected)
    own = torch.autograd.grad(found, states, towards)
    for one, other in zip(own, torch.autograd.grad(expected, states, towards), strict=True):
        torch.testing.assert_close(one, other)


def test_equal_lengths_are_not_moved() -> None:
    layout = layout_of([0, 4, 8], [4, 4, 4])
    assert layout.tokens is None
    assert layout.cells is None
    flat = torch.randn(12, 2, 3)
    (padded,) = layout.spread(flat)
    assert padded.shape == (3, 2, 4, 3)
    assert padded.data_ptr() == flat.data_ptr()
    assert torch.equal(layout.collect([padded]), flat)


def test_flattening_drops_padding_wherever_it_is_and_tells_documents_apart() -> None:
    ids = torch.tensor([[0, 5, 6, 0], [7, 8, 9, 4]])
    real = torch.tensor([[False, True, True, False], [True] * 4])
    places = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 1]])
    flat = flatten(ids, real, places)
    assert flat.input_ids.tolist() == [5, 6, 7, 8, 9, 4]
    assert flat.origin.tolist() == [1, 2, 4, 5, 6, 7]
    assert flat.layout.rows == 3


BATCH = torch.tensor([[3, 9, 4, 17, 5, 8, 2], [6, 2, 11, 0, 0, 0, 0], [12, 7, 7, 1, 0, 0, 0]])
REAL = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [True] * 4 + [False] * 3])


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_trunk_computes_and_learns_what_it_does_of_padded_rows(kind: str) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind).double().train()
    assert reads_flat(model.base_model)
    implementation = model.config._attn_implementation
    results = []
    for padded in (False, True):
        logprobs, entropy = token_logprobs(model, BATCH, REAL, REAL, with_entropy=True, padded=padded)
        hidden = hidden_states(model, BATCH, REAL, padded=padded)[REAL]
        (logprobs.sum() + hidden.square().sum()).backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([logprobs, entropy, hidden, *gradients])
        model.zero_grad()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # log-probs are float32
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_in_bf16_it_is_as_near_to_the_truth_as_padded_rows_are(kind: str) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind).train()

    def learned(name: str, *, padded: bool) -> list[Tensor]:
        model.zero_grad()
        with precision_context(name, "cpu"):
            logprobs, _ = token_logprobs(model, BATCH, REAL, REAL, padded=padded)
        logprobs.sum().backward()
        return [logprobs.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    exact = learned("fp32", padded=True)

    def distance(found: list[Tensor]) -> float:
        return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))

    flat, rows = distance(learned("bf16", padded=False)), distance(learned("bf16", padded=True))
    assert 1e-4 < flat < 1.5 * rows
    assert reads_flat(model.base_model)  # the trial was in float32


def test_in_bf16_attention_is_in_bf16_and_that_of_few_queries_in_float32() -> None:
    states = [torch.randn(27, 2, 8) for _ in range(3)]
    layout = layout_of([0, 4], [4, 23])
    few = layout.where_asked(torch.tensor([3]))
    assert few.asked is not None
    exact, exactly_few = through(*states, layout), through(*states, few)
    with torch.autocast("cpu", torch.bfloat16):
        found, found_few = through(*states, layout), through(*states, few)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=0.02, atol=0.02)
    assert torch.equal(found_few, exactly_few)


@pytest.mark.parametrize("wanted", [[0], [2, 5, 13], list(range(14))])
def test_in_bf16_tokens_come_in_multiples_and_none_too_many_is_given(
    wanted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model(tiny.tokenizer())
    flat = flatten(BATCH, REAL, torch.arange(7).expand(3, 7))
    assert len(flat.input_ids) == 14
    chosen, whole, seen = torch.tensor(wanted), ragged._states, []

    def states(trunk: Any, input_ids: Tensor, *rest: Any) -> Tensor:
        seen.append(len(input_ids))
        return whole(trunk, input_ids, *rest)

    monkeypatch.setattr(ragged, "_states", states)
    results = []
    for name in ("fp32", "bf16"):
        ragged.narrows(model.base_model)  # tried beforehand
        seen.clear()
        with precision_context(name, "cpu"):
            results.append(
                ragged.flat_states(model.base_model, flat.input_ids, flat.position_ids, flat.layout, chosen)
            )
        assert seen == [{"fp32": 14, "bf16": ragged.STEADY}[name]]
    assert results[1].shape == (len(wanted), results[0].shape[1])
    torch.testing.assert_close(results[1].float(), results[0], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_windows_of_attention_keep_padded_rows(kind: str) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind)
    assert not reads_flat(model.base_model)
    logprobs, _ = token_logprobs(model, BATCH, REAL, REAL)
    assert torch.isfinite(logprobs).all()


def test_a_trunk_that_makes_something_else_of_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(tiny.tokenizer())
    whole = ragged._states
    monkeypatch.setattr(ragged, "_states", lambda *args: whole(*args).flip(0))
    assert not reads_flat(model.base_model)
    refusing = tiny.model(tiny.tokenizer())

    def refuse(*args: Any) -> Tensor:
        raise TypeError("forward() got an unexpected keyword argument 'layout'")

    monkeypatch.setattr(ragged, "_states", refuse)
    assert not reads_flat(refusing.base_model)
    assert refusing.training == tiny.model(tiny.tokenizer()).training


@given(st.lists(st.integers(1, 3000), max_size=30))
@settings(max_examples=30, deadline=None)
def test_passes_hold_each_row_once_and_few_tokens_more_than_they_may(lengths: list[int]) -> None:
    model = tiny.model(tiny.tokenizer())
    groups = forward_groups(model, lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert [lengths[i] for group in groups for i in group] == sorted(lengths)
    longest = max(lengths, default=0)
    assert all(sum(lengths[i] for i in group) <= TOKENS_AT_ONCE + longest for group in groups)
