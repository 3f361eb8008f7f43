"""The GPUs that a stage computes on, as torch sees them; torch is not imported for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpus:
    """What a stage had of GPUs.

    Attributes:
        count: how many, those of the processes that share its training included.
        uuids: NVML's names of them.
        peak_bytes: the most that this process took of one of them.
    """

    count: int
    uuids: tuple[str, ...]
    peak_bytes: int


def gpus_used(count: int) -> Gpus | None:
    """The GPUs of this process's stage; None for one that never computed on any.

    Args:
        count: processes that share the stage's work; the one of rank i has the i-th GPU.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    uuids = (getattr(torch.cuda.get_device_properties(index), "uuid", "") for index in range(count))
    return Gpus(
        count,
        tuple(f"GPU-{uuid}" for uuid in uuids),
        max(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count())),
    )
