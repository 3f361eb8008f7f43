"""Figures of a step's parts, added up."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prefloop.training import figures
from prefloop.training.figures import share, totals

NUMBERS = st.floats(-1e6, 1e6, width=32)


def test_a_share_is_a_part_of_the_whole_and_holds_no_graph() -> None:
    weights = torch.tensor([1.0, 2.0, 4.5], requires_grad=True)
    part = share(weights * 2, 3)
    assert float(part) == 5.0
    assert part.dtype == torch.float64
    assert not part.requires_grad
    assert float(share(torch.tensor([True, False, True]), 4)) == 0.5


def test_names_are_added_up_in_the_order_in_which_they_come() -> None:
    parts = [{"loss": torch.tensor(1.5), "pairs": 2.0}, {"pairs": torch.tensor(3), "kl": 0.25}]
    assert totals(parts) == {"loss": 1.5, "pairs": 5.0, "kl": 0.25}
    assert list(totals(parts)) == ["loss", "pairs", "kl"]
    assert totals([]) == {}


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.tuples(NUMBERS, st.booleans()))))
def test_what_a_gpu_holds_is_read_at_once_and_adds_up_to_the_same(
    parts: list[dict[str, tuple[float, bool]]],
) -> None:
    mixed = [
        {name: torch.tensor(value) if as_tensor else value for name, (value, as_tensor) in part.items()}
        for part in parts
    ]
    here = totals(mixed)
    with mock.patch.object(figures, "_is_far", lambda value: isinstance(value, Tensor)):
        far = totals(mixed)
    assert (
        far
        == here
        == pytest.approx({name: sum(part.get(name, (0.0,))[0] for part in parts) for name in here})
    )
