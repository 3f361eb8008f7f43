"""Memory of keys and values: what it holds, and that it goes back to the system."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.peers.clock import resident
from prefloop.rollout import buffers
from prefloop.rollout.buffers import Buffer
from prefloop.training.memory import is_out_of_memory


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_it_begins_with_what_it_is_given_and_is_0_behind(shapes: list[tuple[int, int]]) -> None:
    like = torch.zeros(1, 2, 1, 3)
    buffer, held = Buffer(like, None), torch.zeros(0, 2, 0, 3)
    for rows, more in shapes:
        if rows > len(held):  # rows that are its own, some of them twice
            held = held[torch.arange(rows) % len(held)] if len(held) else torch.randn(rows, 2, 2, 3)
            buffer.hold(held, rows, held.shape[2] + more)
        else:  # they change place within it
            held = held[:rows]
            buffer.hold(buffer.rows[:rows, :, : held.shape[2]], rows, held.shape[2] + more)
        assert buffer.rows.shape == (rows, 2, held.shape[2] + more, 3)
        assert torch.equal(buffer.rows[:, :, : held.shape[2]], held)
        assert not buffer.rows[:, :, held.shape[2] :].any()
        held = torch.cat([held, torch.randn(rows, 2, more, 3)], dim=2)
        buffer.rows[:] = held


def test_only_large_memory_is_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = list[int]()

    def counted(count: int, like: torch.Tensor) -> torch.Tensor:
        mapped.append(count)
        return like.new_empty(count)

    monkeypatch.setattr(buffers, "_mapped", counted)
    buffer = Buffer(torch.zeros(1, 1, 1, 64), None)
    buffer.hold(None, 4, 4095)
    assert not mapped
    buffer.hold(None, 4, 4096)
    assert mapped == [2**20]


def test_fewer_rows_with_more_room_need_no_more_memory() -> None:
    buffer = Buffer(torch.zeros(1, 2, 1, 4), torch.bfloat16)
    buffer.hold(None, 8, 16)
    at = buffer.rows.data_ptr()
    buffer.hold(buffer.rows[:4], 4, 32)
    assert buffer.rows.data_ptr() == at
    assert buffer.rows.dtype == torch.bfloat16
    buffer.hold(buffer.rows, 4, 33)
    assert buffer.rows.data_ptr() != at


def test_memory_goes_back_to_the_system_with_the_last_tensor() -> None:
    before = resident()
    buffer = Buffer(torch.zeros(1, 1, 1, 64), None)
    buffer.hold(None, 64, 8192)  # 128 MiB
    rows = buffer.rows
    assert resident() - before > 120 * 2**20
    del buffer
    assert resident() - before > 120 * 2**20
    assert not rows.any()
    del rows
    assert resident() - before < 20 * 2**20


def test_no_room_is_what_the_trainers_take_for_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(buffers.mmap, "mmap", full)
    with pytest.raises(MemoryError, match="4,194,304 bytes") as caught:
        Buffer(torch.zeros(1, 1, 1, 64), None).hold(None, 4, 4096)
    assert is_out_of_memory(caught.value)
