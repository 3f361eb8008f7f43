"""Of what was tried for a step of a training and is not used, or only where it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

from benchmarks.gains.measure import Gain, compare
from benchmarks.gains.training import learn, rows_of
from benchmarks.timing.sizes import Lengths
from prefloop.config.compute import ComputeConfig
from prefloop.data.batching import Batch, collate
from prefloop.training import language_model
from prefloop.training.environment import resolve
from prefloop.training.language_model import TokenRows
from prefloop.training.optimisation import save_memory


def recomputed(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Activations computed again in the backward pass, for their memory's sake."""
    rows = _rows(name, model, tokenizer, lengths)
    saving = copy.deepcopy(model)
    save_memory(saving, replace(rows.config, gradient_checkpointing=True))
    saving.train()
    again = replace(rows, model=saving)
    _same(learn(again), learn(rows), rows.precision)
    what = (
        f"activations computed again (gradient_checkpointing), a step of SFT at {name}, {lengths.name} rows"
    )
    yield compare(what, partial(learn, again), partial(learn, rows), rounds, use="a setting")


def beforehand(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Batches that are there when a step begins: the most that preparing them beside it could gain."""
    rows = _rows(name, model, tokenizer, lengths)
    made = dict[tuple[int, ...], Batch]()

    def known(encoded: Sequence[Any], tokenizer: Any) -> Batch:
        key = tuple(map(id, encoded))
        if key not in made:
            made[key] = collate(encoded, tokenizer)
        return made[key]

    def ready() -> float:
        with mock.patch.object(language_model, "collate", known):
            return learn(rows)

    _same(ready(), learn(rows), rows.precision)
    what = f"batches made beforehand, a step of SFT at {name}, {lengths.name} rows"
    yield compare(what, ready, partial(learn, rows), rounds, use="dropped")


def _rows(name: str, model: Any, tokenizer: Any, lengths: Lengths) -> TokenRows:
    """A step's, in the precision that `auto` takes."""
    return rows_of(name, model, tokenizer, lengths, precision=resolve(ComputeConfig(device="cpu")).precision)


def _same(one: float, other: float, precision: str) -> None:
    """A loss either way, as near as the precision lets it be."""
    assert abs(one - other) < (1e-5 if precision == "fp32" else 1e-2) * abs(other)
