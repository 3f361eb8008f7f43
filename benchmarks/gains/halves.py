"""Of a step whose halves go at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch

from benchmarks.gains.measure import Gain, compare
from benchmarks.gains.training import learn, rows_of, scoring
from benchmarks.timing.sizes import Lengths
from prefloop.config.compute import ComputeConfig
from prefloop.models import forward
from prefloop.training.environment import resolve


def halves(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Half of a step's rows in each of two threads, for two threads in each operation of the whole."""
    precision = resolve(ComputeConfig(device="cpu")).precision
    rows = rows_of(name, model, tokenizer, lengths, precision=precision)
    steps = {
        "SFT": partial(learn, rows),
        "the reward model": scoring(model.name_or_path, tokenizer, lengths, precision),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(max(before, 2))
    try:
        for method, step in steps.items():

            def whole(step: Callable[[], float] = step) -> float:
                with mock.patch.object(forward, "halves", return_value=None):
                    return step()

            assert abs(step() - whole()) < (1e-5 if precision == "fp32" else 1e-2) * abs(whole())
            what = f"halves of a batch in two threads, wall time of a step of {method} at {name}"
            yield compare(
                f"{what}, {lengths.name} rows, {precision}", step, whole, rounds, clock=time.perf_counter
            )
    finally:
        torch.set_num_threads(before)
