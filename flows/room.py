"""What this machine has for stages: its GPUs and its memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.planning.model import Action, StagePlan
from prefloop.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
PROBE_SECONDS = 30.0


@dataclass(frozen=True)
class Room:
    """What stages side by side share.

    Attributes:
        gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES takes them.
        memory: main memory (bytes); 0 where it cannot be known.
    """

    gpus: tuple[str, ...] = ()
    memory: int = 0


def room_here() -> Room:
    """The room of this machine, or of the container that this process is in."""
    return Room(visible_gpus(), memory_here())


def visible_gpus() -> tuple[str, ...]:
    """Those that CUDA_VISIBLE_DEVICES names, or else all that the driver tells of, by their lasting names."""
    named = os.environ.get(VISIBLE)
    if named is not None:
        words = [word.strip() for word in named.split(",")]
        # CUDA itself takes what stands before the first that it does not know, such as -1.
        first_wrong = next((i for i, word in enumerate(words) if word in ("", "-1")), len(words))
        return tuple(words[:first_wrong])
    return tuple(uuid for _, uuid in installed_gpus())


def installed_gpus() -> list[tuple[str, str]]:
    """(number, lasting name) of every GPU of the driver; none without a driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[word.strip() for word in line.split(",")] for line in told.splitlines() if line.count(",") == 1]
    return [(number, uuid) for number, uuid in rows]


def memory_here(limit: Path = CGROUP_LIMIT) -> int:
    """Memory of the machine, or less where its container may use less (bytes)."""
    total = int(psutil.virtual_memory().total)
    try:
        allowed = limit.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(allowed)) if allowed.isdigit() else total


def refuse_what_has_no_room(stages: Iterable[StagePlan], room: Room) -> None:
    """Refuses a plan with a stage that asks this machine for more than it has.

    Raises:
        ConfigError: names the first such stage, and what to do.
    """
    for stage in stages:
        if stage.place.pool or stage.action is Action.SKIP:
            continue
        key = f"resources.stages.{stage.name.partition('@')[0]}"
        elsewhere = f"or send it to a pool: resources.place=pools and {key}.pool"
        if stage.place.gpus > len(room.gpus):
            raise ConfigError(
                f"stage {stage.name} asks for {stage.place.gpus} GPUs, and {len(room.gpus)} can be seen here",
                f"set {key}.gpu to {len(room.gpus)}, {elsewhere}",
            )
        if room.memory and stage.place.memory > room.memory:
            asked, here = stage.place.memory / 2**30, room.memory / 2**30
            raise ConfigError(
                f"stage {stage.name} asks for {asked:.3g} GiB of memory, and this machine has {here:.3g} GiB",
                f"set {key}.memory to less, {elsewhere}",
            )
