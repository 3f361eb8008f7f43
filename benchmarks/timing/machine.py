"""What the machine can do, measured in the same run: matrix products, memory; and what it is."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prefloop.training.environment import Environment


def seconds_of(work: Callable[[], object], device: str) -> float:
    """How long `work` takes, what it queued on a GPU included."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: str) -> None:
    """Waits for what a GPU still has to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def gemm_rate(environment: Environment, threads: int) -> float:
    """Operations a second of the best of several large square products, in the precision of the run."""
    torch.set_num_threads(threads)
    dtype = torch.bfloat16 if environment.precision == "bf16" else torch.float32
    best = 0.0
    for width in (4096, 8192) if environment.device == "cuda" else (1024, 2048):
        left, right = (torch.randn(width, width, device=environment.device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)

        def multiply(a: torch.Tensor = left, b: torch.Tensor = right, c: torch.Tensor = out) -> None:
            torch.matmul(a, b, out=c)

        multiply()
        for _ in range(5):
            best = max(best, 2 * width**3 / seconds_of(multiply, environment.device))
    return best


def bandwidth(device: str, threads: int) -> float:
    """Bytes a second of the best of several large copies, read and written bytes both counted."""
    torch.set_num_threads(threads)
    source = torch.ones(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    size = 2 * source.numel() * source.element_size()
    return max(size / seconds_of(lambda: target.copy_(source), device) for _ in range(5))


def about(environment: Environment, threads: int) -> dict[str, Any]:
    """The machine and the versions, for whoever reads the figures."""
    chip = environment.device_name if environment.device == "cuda" else processor()
    return {
        "chip": chip,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "instructions": environment.instruction_set,
        "precision": environment.precision,
        "device": environment.device,
        "python": platform.python_version(),
        "torch": environment.torch,
        "transformers": environment.transformers,
        "date": time.strftime("%Y-%m-%d"),
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
