"""What results depend on besides code, data and parameters: resolved once, part of a training's key."""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prefloop.config.compute import ComputeConfig
from prefloop.errors import ConfigError, DataError
from prefloop.files import read_json
from prefloop.training.allocator import keep_freed_memory

_FAST_BF16 = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True)
class Environment:
    """The fingerprint: two runs with equal fingerprints on CPU end with equal bytes.

    Attributes:
        device: "cpu" or "cuda"; device_name: the processor family or the GPU's name.
        precision: "fp32" or "bf16". threads: CPU threads of a process. processes: that share a training.
        sharding: "none" or "full", of the weights that train among these processes.
        instruction_set: the widest vector instructions the processor has.
        versions of python, torch, transformers, tokenizers, numpy.
    """

    device: str
    device_name: str
    precision: str
    threads: int
    processes: int
    sharding: str
    instruction_set: str
    python: str
    torch: str
    transformers: str
    tokenizers: str
    numpy: str

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def resolve(config: ComputeConfig) -> Environment:
    """Decides device, precision, threads, processes and sharding. Imports torch only where a GPU driver is
    present.

    Raises:
        ConfigError: device is "cuda" and there is none, or there are fewer GPUs than processes.
    """
    flags = _cpu_flags()
    gpu, gpu_fast_bf16, gpus = _gpu() if config.device != "cpu" else ("", False, 0)
    if config.device == "cuda" and not gpu:
        raise ConfigError(
            "compute.device is cuda, but no CUDA GPU was found", "set compute.device to auto or cpu"
        )
    if gpu and config.processes > gpus:
        raise ConfigError(
            f"compute.processes is {config.processes}, but {gpus} CUDA GPU{'s are' if gpus > 1 else ' is'} "
            "visible, and each process needs one",
            "set compute.processes to 0, which takes one a GPU",
        )
    fast_bf16 = gpu_fast_bf16 if gpu else bool(flags & _FAST_BF16)
    processes = config.processes or max(gpus, 1)
    precision = ("bf16" if fast_bf16 else "fp32") if config.precision == "auto" else config.precision
    return Environment(
        device="cuda" if gpu else "cpu",
        device_name=gpu or platform.machine(),
        precision=precision,
        threads=config.threads or _cores(),
        processes=processes,
        sharding=config.sharding if processes > 1 else "none",
        instruction_set=_instruction_set(flags),
        python=".".join(map(str, sys.version_info[:2])),
        torch=_version("torch"),
        transformers=_version("transformers"),
        tokenizers=_version("tokenizers"),
        numpy=_version("numpy"),
    )


def load_environment(path: Path | str) -> Environment:
    """Reads what the stage `environment` wrote.

    Raises:
        DataError: missing file, or keys of another version of prefloop.
    """
    values = read_json(path)
    try:
        return Environment(**values)
    except TypeError as error:
        raise DataError(
            f"{path} does not describe an environment: {error}", "run the stage environment"
        ) from error


def apply(environment: Environment, threads: int = 0) -> None:
    """Sets threads (the environment's where `threads` is 0), deterministic algorithms, and how this process
    keeps memory and looks for garbage."""
    keep_freed_memory()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a stage has a progress line of its own
    torch.set_num_threads(threads or environment.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # What it does besides, filling memory before its first use, shows reads of unset values and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    if not gc.get_freeze_count():
        # Some hundred thousand objects of imported modules live as long as the process: to go through them
        # for garbage takes as long as a step of a small model (`python -m benchmarks.techniques garbage`).
        gc.freeze()


def _cpu_flags() -> set[str]:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def _instruction_set(flags: set[str]) -> str:
    for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "sve", "asimd"):
        if name in flags:
            return name
    return platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> tuple[str, bool, int]:
    """Name of the first CUDA GPU, whether it is fast at bf16, and how many are visible; ("", False, 0)
    without one."""
    if not Path("/dev/nvidiactl").exists() and not Path("/proc/driver/nvidia").exists():
        return "", False, 0
    import torch

    if not torch.cuda.is_available():
        return "", False, 0
    fast_bf16 = torch.cuda.get_device_capability(0) >= (8, 0)
    return torch.cuda.get_device_name(0), fast_bf16, torch.cuda.device_count()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
