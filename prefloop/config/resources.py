"""Where stages run, what each of them needs there, and what is done when a machine fails."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prefloop.config.parse import at_least, nearest
from prefloop.config.policies import policies_in
from prefloop.data.records import KINDS
from prefloop.errors import ConfigError

SECTION = "resources"
STAGES = (
    "ingest",
    "validate",
    "validate-leaks",
    "base",
    "sft",
    "reward",
    "judge",
    "evaluate",
    "looks",
    "report",
)
"""Stages besides those that train policies, METHOD or METHOD@NAME."""

UNITS = {
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate(("k", "M", "G", "T"), 1)},
}
"""Unit of memory -> bytes."""

_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", re.ASCII)
_POOL = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class StageResources:
    """What one stage needs; all of it may be left out.

    Attributes:
        gpu: GPUs of its own (count); 0 asks for none, and takes what is visible.
        memory: main memory, a number and its unit such as 16GiB; empty asks for nothing.
        pool: Prefect work pool that it goes to where `place` is pools; empty runs it here.
    """

    gpu: int = 0
    memory: str = ""
    pool: str = ""

    def __post_init__(self) -> None:
        at_least("gpu", self.gpu, 0)
        bytes_of(self.memory)
        check_pool("pool", self.pool)

    @property
    def memory_bytes(self) -> int:
        return bytes_of(self.memory)


@dataclass(frozen=True)
class PoolResources:
    """What the workers of a pool have together.

    Attributes:
        gpus: GPUs (count): stages that ask for more than are free wait; 0 sets no such limit.
    """

    gpus: int = 0

    def __post_init__(self) -> None:
        at_least("gpus", self.gpus, 0)


@dataclass(frozen=True)
class ResourcesConfig:
    """Section `resources`; no stage depends on it, so a change re-runs nothing.

    Attributes:
        place: "here" runs every stage in this workspace, "pools" sends each to the work pool that it names.
        retries: times that a stage is tried again after a fault of the infrastructure (count).
        retry_seconds: wait before the first of them (seconds), doubled each time.
        lost_seconds: a stage on a pool that gives no sign of life for this long is lost (seconds).
        server_seconds: how long a Prefect server that does not answer is waited for (seconds).
        pools: pool -> what its workers have.
        stages: stage -> what it needs; METHOD@NAME takes its method's unless it is named itself.
    """

    place: Literal["here", "pools"] = "here"
    retries: int = 3
    retry_seconds: float = 10.0
    lost_seconds: float = 45.0
    server_seconds: float = 900.0
    pools: dict[str, PoolResources] = field(default_factory=dict)
    stages: dict[str, StageResources] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("retries", self.retries, 0)
        at_least("retry_seconds", self.retry_seconds, 0)
        at_least("lost_seconds", self.lost_seconds, 0, strict=True)
        at_least("server_seconds", self.server_seconds, 0)
        for pool in self.pools:
            check_pool("pools", pool)

    def of(self, stage: str) -> StageResources:
        """What a stage needs: its own entry, that of the name before its @, or nothing."""
        none = StageResources()
        return self.stages.get(stage) or self.stages.get(stage.partition("@")[0]) or none


def bytes_of(memory: str) -> int:
    """`16GiB` in bytes; 0 for the empty text.

    Raises:
        ValueError: no number with a unit; the nearest unit is named.
    """
    if not memory:
        return 0
    found = _MEMORY.fullmatch(memory.strip())
    if not found:
        raise ValueError(f"memory is {memory!r}, which is no number with a unit: write 16GiB")
    number, unit = found.groups()
    if unit not in UNITS:
        raise ValueError(f"memory is {memory!r}: {_unit_like(number, unit)}")
    return int(float(number) * UNITS[unit])


def check_pool(where: str, name: str) -> None:
    """Raises ValueError for a text that is no name of a work pool; the empty one is none."""
    if name and not _POOL.fullmatch(name):
        raise ValueError(f"{where} is {name!r}: name a work pool in letters, digits, -, _ and .")


def check_stages(params: Mapping[str, Any], resources: ResourcesConfig, methods: Collection[str]) -> None:
    """Checks that each stage of `resources.stages` is one.

    Args:
        params: the whole of params.yaml. methods: those that train policies; one that trains none now may be
            named, since presets name them all.

    Raises:
        ConfigError: a stage that is none; the nearest right one is named.
    """
    known = {*STAGES, *methods, *(f"validate@{kind}" for kind in KINDS)}
    known |= {f"{method}@{name}" for method, name in policies_in(params)}
    known |= {f"evaluate@{name}" for name in _evaluated(params)}
    for stage in resources.stages:
        if stage not in known:
            where = f"{SECTION}.stages"
            raise ConfigError(f"{where}.{stage}: there is no such stage", nearest(stage, known, where))


def _evaluated(params: Mapping[str, Any]) -> Iterable[str]:
    return (params.get("evaluate") or {}).get("policies") or ()


def _unit_like(number: str, unit: str) -> str:
    if not unit:
        return f"a unit is missing, such as in {number}GiB"
    alike = {known.lower(): known for known in UNITS}
    close = alike.get(unit.lower()) or alike.get(f"{unit.lower()}b")
    return f"did you mean {number}{close}?" if close else f"units are {', '.join(UNITS)}"
