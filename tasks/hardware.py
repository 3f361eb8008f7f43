"""`python -m tasks.hardware`: what torch can compute on, and what params.yaml makes of it, as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import torch

from prefloop.config.compute import ComputeConfig
from prefloop.config.read import read_section
from prefloop.errors import ConfigError
from prefloop.training.environment import resolve

GIB = 1 << 30


def describe() -> dict[str, Any]:
    """Versions, cores, memory (GiB), GPUs, and the device, precision, threads and processes of a stage."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cores": os.cpu_count() or 1,
        "memory_gib": psutil.virtual_memory().total / GIB,
        "driver": Path("/proc/driver/nvidia/version").exists(),
        "gpus": [{"name": gpu.name, "memory_gib": gpu.total_memory / GIB} for gpu in gpus],
        "error": "",
        "remedy": "",
    }
    try:
        environment = resolve(read_section("compute", ComputeConfig))
    except ConfigError as error:
        return found | {"error": error.message, "remedy": error.remedy}
    return found | {
        "device": environment.device,
        "precision": environment.precision,
        "threads": environment.threads,
        "processes": environment.processes,
        "sharding": environment.sharding,
    }


if __name__ == "__main__":
    print(json.dumps(describe()))
