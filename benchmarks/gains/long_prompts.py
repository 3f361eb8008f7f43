"""Of sampling after long prompts: its time, and the MiB by which a process grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.gains.held import both, measured
from benchmarks.gains.measure import Gain
from benchmarks.gains.processes import asked
from benchmarks.timing.material import conversations
from benchmarks.timing.sizes import CPU_LENGTHS
from prefloop.config.compute import ComputeConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.models.loading import load_policy
from prefloop.rollout import buffers, prefill
from prefloop.rollout.kv_cache import roomy_cache, roomy_layers
from prefloop.rollout.sampling import Sampler
from prefloop.training.environment import apply, resolve

CALLS = 3
"""Times that 256 answers are sampled."""


def as_written(model: Any, step: int) -> Any:
    """A cache whose buffers have the dtype of what is written to them."""
    cache = roomy_cache(model, step)
    for layer in roomy_layers(cache):
        layer.kept = None
    return cache


def on_the_heap(count: int, like: Any) -> Any:
    """Memory as torch gets it."""
    return like.new_empty(count)


WITHOUT: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "": nullcontext,
    "prompts read some at a time (without: at once)": partial(mock.patch.object, prefill, "TOKENS", 2**40),
    "keys and values mapped apart from the heap": partial(mock.patch.object, buffers, "_mapped", on_the_heap),
    "keys and values kept in bf16": partial(mock.patch.object, prefill, "roomy_cache", as_written),
}
"""What is left out, for each technique."""


def long_prompts(name: str, folder: Path, threads: int, rounds: int, precision: str) -> Iterator[Gain]:
    """Each technique, in processes of their own."""
    for technique in WITHOUT:
        if not technique or (precision == "fp32" and "bf16" in technique):
            continue
        with_it, without = (
            partial(
                asked,
                f"long_prompts.sampling({name!r}, {str(folder)!r}, {threads}, {precision!r}, {left_out!r})",
                {},
            )
            for left_out in ("", technique)
        )
        what = f"{technique}, {CALLS} times 256 answers to long prompts at {name}, {precision}"
        yield from both(what, with_it, without, rounds, "kept")


def sampling(name: str, folder: str, threads: int, precision: str, left_out: str) -> dict[str, float]:
    """Of answers without the technique that is named."""
    apply(resolve(ComputeConfig(device="cpu", precision=precision)), threads)
    model, tokenizer = load_policy(Path(folder))
    lengths = CPU_LENGTHS["long"]
    sampler = Sampler(model, tokenizer, SamplingConfig(max_new_tokens=lengths.completion[2]), precision)
    prompts = [row["prompt"] for row in conversations(len(tokenizer), lengths, 256)]
    with WITHOUT[left_out]():
        return measured([partial(sampler.sample, prompts, (0, "long", call)) for call in range(CALLS)])
