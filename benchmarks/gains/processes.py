"""Of what a process sets before it computes: processes in turn, as it cannot be undone in one."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gains.measure import Gain, compare, gain_of, spent
from benchmarks.gains.training import learn, rows_of
from benchmarks.timing.sizes import CPU_LENGTHS
from prefloop.config.compute import ComputeConfig
from prefloop.models.loading import load_policy
from prefloop.training.environment import apply, resolve

SPINS = {"a tenth": "30000", "a hundredth": "3000"}
"""GOMP_SPINCOUNT, as parts of OpenMP's own default."""


def memory(name: str, folder: Path, threads: int, rounds: int) -> Iterator[Gain]:
    """Freed memory kept, in huge pages where they are."""
    # What a variable of glibc's sets, prefloop leaves; this one changes nothing here.
    left = {"MALLOC_ARENA_TEST": "8", "THP_MEM_ALLOC_ENABLE": "0"}
    count = max(rounds // 2, 3)
    pairs = [
        (_step(name, folder, threads, "cpu"), _step(name, folder, threads, "cpu", **left))
        for _ in range(count)
    ]
    yield gain_of(f"freed memory stays, a step of SFT at {name}", pairs)


def garbage(rounds: int) -> Iterator[Gain]:
    """A search for garbage that leaves out what was there when the process was set up, modules above all."""

    def everywhere() -> None:
        gc.unfreeze()
        try:
            gc.collect()
        finally:
            gc.freeze()

    what = "a full search for garbage that leaves imported modules out"
    yield compare(what, gc.collect, everywhere, rounds)


def spinning(name: str, folder: Path, rounds: int) -> Iterator[Gain]:
    """How long two threads wait for each other before they sleep, alone and with a neighbour at work."""
    for beside in (False, True):
        for part, spins in SPINS.items():
            pairs = []
            with neighbour() if beside else nullcontext():
                for _ in range(max(rounds // 2, 3)):
                    less = _step(name, folder, 2, "wall", GOMP_SPINCOUNT=spins)
                    pairs.append((less, _step(name, folder, 2, "wall")))
            where = "beside a busy process" if beside else "alone"
            step = f"wall time of a step of SFT at {name}, two threads, {where}"
            yield gain_of(f"threads that spin {part} as long, {step}", pairs, use="dropped")


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that never rests."""
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def _step(name: str, folder: Path, threads: int, clock: str, **environment: str) -> float:
    """Milliseconds of a step in a process of its own."""
    call = f"processes.step({name!r}, {str(folder)!r}, {threads}, {clock!r})"
    return float(asked(call, environment))


def asked(call: str, environment: Mapping[str, str]) -> Any:
    """What a call of one of these modules comes to in a process of its own, which gets these variables."""
    modules = "held, long_prompts, processes"
    code = f"import json; from benchmarks.gains import {modules}; print(json.dumps({call}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def step(name: str, folder: str, threads: int, clock: str) -> float:
    """Milliseconds of a step, of the processor ("cpu") or on the "wall"."""
    apply(resolve(ComputeConfig(device="cpu", precision="fp32")), threads)
    model, tokenizer = load_policy(Path(folder))
    rows = rows_of(name, model, tokenizer, CPU_LENGTHS["short"])
    learn(rows), learn(rows)
    read = time.process_time if clock == "cpu" else time.perf_counter
    return statistics.median(spent(partial(learn, rows), read) for _ in range(7))
