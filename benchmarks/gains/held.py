"""Of what a process holds for each shape of a product in bf16: its time, and the MiB by which it grows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from random import Random
from unittest import mock

from benchmarks.gains.measure import Gain, gain_of, spent
from benchmarks.gains.processes import asked
from benchmarks.gains.training import four_steps, rows_of
from benchmarks.peers.clock import forget_peak, peak, resident
from benchmarks.timing.material import conversations
from benchmarks.timing.sizes import CPU_LENGTHS
from prefloop.config.compute import ComputeConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.models.loading import load_policy
from prefloop.rollout import sampling
from prefloop.training.environment import apply, resolve

STEPS = 48
"""Of SFT, which rows nobody saw together before."""
CALLS = 5
"""Times that 256 answers are sampled."""
FORGETTING = {"LRU_CACHE_CAPACITY": "1"}
"""Torch keeps nothing of its own for a shape; oneDNN does."""

BOUNDARIES = {"THP_MEM_ALLOC_ENABLE": "1"}
"""Torch asks for huge pages itself, and the heap stays as it is."""

Work = Callable[[], object]
Measured = Callable[[], dict[str, float]]


def shapes(name: str, folder: Path, threads: int, rounds: int) -> Iterator[Gain]:
    """Batches of few sizes; and nothing kept beside what oneDNN keeps."""
    sampled = f"held.sampling_often({name!r}, {str(folder)!r}, {threads}, few={{}})"
    few, many = (partial(asked, sampled.format(flag), {}) for flag in (True, False))
    what = "batches shrink to few sizes (without: each row leaves at once)"
    calls = f"{what}, {CALLS} times 256 answers at {name}, bf16"
    yield from both(calls, few, many, rounds, "kept")
    trained = partial(asked, f"held.training({name!r}, {str(folder)!r}, {threads})")
    what = "torch keeps nothing of its own for a shape (LRU_CACHE_CAPACITY)"
    steps = f"{what}, {STEPS} steps of SFT at {name}, short rows, bf16"
    yield from both(steps, partial(trained, FORGETTING), partial(trained, {}), rounds, "dropped")


def heaps(name: str, folder: Path, threads: int, rounds: int) -> Iterator[Gain]:
    """A heap of huge pages, against large tensors each of which begins with one."""
    trained = partial(asked, f"held.training({name!r}, {str(folder)!r}, {threads})")
    what = "a heap of huge pages (without: large tensors begin with one)"
    steps = f"{what}, {STEPS} steps of SFT at {name}, short rows, bf16"
    yield from both(steps, partial(trained, {}), partial(trained, BOUNDARIES), rounds, "kept")


def both(technique: str, with_it: Measured, without: Measured, rounds: int, use: str) -> Iterator[Gain]:
    """Time and growth, of processes in turn."""
    pairs = [(with_it(), without()) for _ in range(max(rounds // 2, 3))]
    yield gain_of(technique, [(ours["ms"], theirs["ms"]) for ours, theirs in pairs], use=use)
    grown = [(ours["MiB"], theirs["MiB"]) for ours, theirs in pairs]
    yield gain_of(f"{technique}: MiB by which a process grows, not ms", grown, use=use)


def training(name: str, folder: str, threads: int) -> dict[str, float]:
    """Of steps of SFT."""
    apply(resolve(ComputeConfig(device="cpu", precision="bf16")), threads)
    model, tokenizer = load_policy(Path(folder))
    rows = rows_of(name, model, tokenizer, CPU_LENGTHS["short"], 4, "bf16")
    shuffled = Random(0)
    return measured([partial(four_steps, rows, shuffled)] * (STEPS // 4))


def sampling_often(name: str, folder: str, threads: int, *, few: bool) -> dict[str, float]:
    """Of answers whose batches shrink to `few` sizes, or with each that ends."""
    apply(resolve(ComputeConfig(device="cpu", precision="bf16")), threads)
    model, tokenizer = load_policy(Path(folder))
    sampler = sampling.Sampler(model, tokenizer, SamplingConfig(max_new_tokens=96), "bf16")
    prompts = [row["prompt"] for row in conversations(len(tokenizer), CPU_LENGTHS["short"], 256)]
    with nullcontext() if few else mock.patch.object(sampling, "rows_for", lambda count: count):
        return measured([partial(sampler.sample, prompts, (0, "held", call)) for call in range(CALLS)])


def measured(works: Sequence[Work]) -> dict[str, float]:
    """Median processor time of what comes after the first, and the growth of all of it to its peak."""
    before = resident()
    if not forget_peak():
        raise RuntimeError("this system does not tell a process's peak: leave out the part `shapes`")
    times = [spent(work) for work in works]
    return {"ms": statistics.median(times[1:]), "MiB": (peak() - before) / 2**20}
