"""Causal attention as batched products in bf16, against attention written out in float64."""

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefloop.models import causal_products as module
from prefloop.models.causal_products import causal_attention
from prefloop.models.layout import Layout, layout_of, steady_width

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)
SIZE = 8


def written_out(states: Sequence[Tensor], sequences: list[list[int]], scale: float) -> Tensor:
    """(1, N, H, D) float64, one sequence and one query at a time."""
    query, key, value = (x[0].transpose(0, 1).double() for x in states)
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    rows = [torch.zeros_like(query[0])] * len(query)
    for tokens in sequences:
        for place, token in enumerate(tokens):
            seen = tokens[: place + 1]
            scores = torch.einsum("hd,shd->hs", query[token], key[seen]) * scale
            rows[token] = torch.einsum("hs,shd->hd", scores.softmax(dim=-1), value[seen])
    return torch.stack(rows).unsqueeze(0)


def drawn(count: int, heads: int, key_heads: int, seed: int = 0) -> list[Tensor]:
    """As a trunk has them: (1, H, N, D), of which each token's are side by side."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, count, own, SIZE, generator=draw).bfloat16().transpose(1, 2).requires_grad_()
        for own in (heads, key_heads, key_heads)
    ]


def agree(states: Sequence[Tensor], layout: Layout, sequences: list[list[int]], scale: float = 0.4) -> None:
    """Within what bf16 rounds, results and gradients."""
    found = causal_attention(*states, layout, scale)
    expected = written_out(states, sequences, scale)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=0.02, atol=0.02)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    own = torch.autograd.grad(found, states, towards)
    for one, other in zip(own, torch.autograd.grad(expected, states, towards.double()), strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 0.02 * other.norm() + 1e-3


@given(LENGTHS, st.sampled_from([(2, 2), (4, 2), (3, 1)]), st.booleans(), st.sampled_from([0, 24, 512]))
@settings(max_examples=60, deadline=None)
def test_each_token_attends_to_its_sequence_up_to_itself(
    lengths: list[int], heads: tuple[int, int], steady: bool, kept: int
) -> None:
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    layout = layout_of(starts, lengths, steady=steady)
    sequences = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    with (
        mock.patch.object(module, "QUERIES", 16),
        mock.patch.object(module, "HEADS", 3),
        mock.patch.object(module, "KEPT", kept),
    ):
        agree(drawn(sum(lengths), *heads), layout, sequences)


@pytest.mark.parametrize("steady", [False, True])
def test_sequences_share_a_prefix_and_its_gradient_is_their_sum(steady: bool) -> None:
    # 0 1 2 | 3 4 | 5 | 6 7 8 and, without a prefix of its own, 9 10
    layout = layout_of([3, 5, 6, 9], [2, 1, 3, 2], [0, 0, 0, 9], [3, 3, 3, 0], steady=steady)
    assert layout.repeated
    sequences = [[0, 1, 2, 3, 4], [0, 1, 2, 5], [0, 1, 2, 6, 7, 8], [9, 10]]
    agree(drawn(11, 4, 2), layout, sequences)


def test_a_sum_over_many_sequences_is_taken_in_float32() -> None:
    """The value of a prefix that 500 sequences read, each with weight 1/2: in bf16 that sum ends at 128."""
    count = 500
    layout = layout_of(range(1, count + 1), [1] * count, [0] * count, [1] * count, steady=True)
    states = [torch.zeros(1, 1, count + 1, SIZE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    found = causal_attention(*states, layout, 1.0)
    (gradient,) = torch.autograd.grad(found, states[2], torch.ones_like(found))
    assert gradient[0, 0, 0, 0].item() == 251.0, "1 from itself, 250 from the others"


def test_what_is_computed_again_has_the_same_bits_and_less_is_kept() -> None:
    layout, states = layout_of([0, 90], [90, 100], steady=True), drawn(190, 2, 2)

    def learned(kept: int) -> tuple[list[Tensor], int]:
        sizes = list[int]()

        def pack(saved: Tensor) -> Tensor:
            sizes.append(saved.numel())
            return saved

        with (
            mock.patch.object(module, "KEPT", kept),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved),
        ):
            found = causal_attention(*states, layout, 0.3)
        gradients = torch.autograd.grad(found.float().square().sum(), states)
        return [found.detach(), *gradients], sum(sizes)

    (whole, much), (again, little) = learned(512), learned(64)
    assert all(map(torch.equal, whole, again))
    assert much - little == 4 * 104 * 104, "two rows of two heads, 104 queries by 104 keys"


def test_nothing_is_kept_without_a_gradient() -> None:
    layout, states = layout_of([0], [20]), drawn(20, 2, 2)
    with torch.no_grad():
        found = causal_attention(*states, layout, 0.3)
    assert not found.requires_grad
    assert torch.equal(found, causal_attention(*states, layout, 0.3).detach())


def test_tokens_that_stand_in_no_row_get_nothing_and_give_nothing() -> None:
    lengths = [5, 3]
    states = drawn(12, 2, 1)
    layout = layout_of([0, 5], lengths, steady=True)
    longer = layout.lengthened(4)
    found = causal_attention(*states, longer, 0.3)
    assert not found[:, 8:].any()
    towards = torch.ones_like(found)
    gradients = torch.autograd.grad(found, states, towards)
    assert all(not gradient[:, :, 8:].any() for gradient in gradients)
    short = [x[:, :, :8].detach().requires_grad_() for x in states]
    expected = causal_attention(*short, layout, 0.3)
    assert torch.equal(found[:, :8], expected)
    own = torch.autograd.grad(expected, short, towards[:, :8])
    for one, other in zip(gradients, own, strict=True):
        assert torch.equal(one[:, :, :8], other)


def test_widths_are_eight_for_each_doubling() -> None:
    assert [steady_width(n) for n in (1, 8, 9, 64, 65, 100, 128, 129, 257, 513)] == [
        8, 8, 16, 64, 72, 104, 128, 144, 288, 576,
    ]  # fmt: skip
    assert len({steady_width(n) for n in range(129, 257)}) == 8
    assert all(n <= steady_width(n) < n * 9 / 8 + 1 for n in range(64, 5000))


def test_long_rows_stand_in_groups_of_two() -> None:
    lengths = [200, 128, 129, 7, 130, 500]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    assert layout_of(starts, lengths, steady=True).shapes == [(2, 128), (2, 144), (2, 512)]


def test_steady_groups_are_of_like_length_and_four_rows() -> None:
    layout = layout_of([0, 30, 35, 75, 81], [30, 5, 40, 6, 7], steady=True)
    assert layout.shapes == [(4, 32), (1, 40)]
