"""Keys and values written in place, against transformers' own cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from prefloop.rollout.kv_cache import RoomyLayer, roomy_cache
from prefloop.rollout.sampling import compacted
from tests import tiny


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(1, 12), st.randoms(use_true_random=False)
)
@settings(max_examples=50, deadline=None)
def test_it_holds_what_a_layer_that_copies_holds(pieces, room, random) -> None:
    ours, theirs = RoomyLayer(room), DynamicCache().layer_class_to_replicate()
    rows = 3
    for piece in pieces:
        keys, values = torch.randn(rows, 2, piece, 4), torch.randn(rows, 2, piece, 5)
        for mine, other in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(mine, other)
        rows = random.randint(1, 5)
        order = torch.tensor([random.randrange(len(keys)) for _ in range(rows)])
        ours.batch_select_indices(order)
        theirs.batch_select_indices(order)
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length()


def test_within_its_room_nothing_is_copied() -> None:
    layer = RoomyLayer(8)
    first, _ = layer.update(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4))
    later, _ = layer.update(torch.randn(2, 1, 5, 4), torch.randn(2, 1, 5, 4))
    assert first.data_ptr() == later.data_ptr()
    assert layer.room == 8
    layer.batch_select_indices(torch.tensor([1]))
    assert layer.keys.data_ptr() == first.data_ptr()


def test_one_token_is_added_as_several_are() -> None:
    one, other = RoomyLayer(2), RoomyLayer(4)
    for _ in range(5):
        keys, values = torch.randn(3, 2, 4), torch.randn(3, 2, 5)
        buffers = one.add(keys, values)
        other.update(keys.unsqueeze(2), values.unsqueeze(2))
    assert [buffer.shape[2] for buffer in buffers] == [6, 6]
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.values, other.values)
    assert torch.equal(buffers[0][:, :, :5], one.keys)
    assert not buffers[0][:, :, 5:].any()


@pytest.mark.parametrize(("kind", "roomy"), [("llama", 2), ("gemma3_text", 0)])
def test_layers_with_a_window_stay_what_they_are(kind: str, roomy: int) -> None:
    model = tiny.model(tiny.tokenizer(), kind=kind, layers=2)
    if kind == "gemma3_text":
        model.config.layer_types = ["sliding_attention"] * 2
    layers = roomy_cache(model, 16).layers
    assert sum(type(layer) is RoomyLayer for layer in layers) == roomy
    assert len(layers) == 2


@given(st.data(), st.lists(st.booleans(), min_size=1, max_size=40).filter(any))
def test_few_rows_move_and_none_that_runs_is_lost(data: st.DataObject, running: list[bool]) -> None:
    size = data.draw(st.integers(min_value=sum(running), max_value=len(running)))
    places = compacted(torch.tensor(running), size).tolist()
    assert len(places) == len(set(places)) == size
    assert {i for i, runs in enumerate(running) if runs} <= set(places)
    assert all(places[i] == i for i in range(size) if running[i])
    assert all(running[place] for i, place in enumerate(places) if place != i)
