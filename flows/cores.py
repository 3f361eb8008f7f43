"""Which stages take every core of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefloop.config.read import read_yaml
from prefloop.errors import DataError
from prefloop.files import read_json

ENVIRONMENT = "runs/environment.json"


def device_of(root: Path) -> str:
    """The device that the stage `environment` found; empty where it never ran."""
    try:
        return str(read_json(root / ENVIRONMENT).get("device"))
    except (DataError, OSError, AttributeError):
        return ""


def taking_every_core(root: Path, stages: Iterable[str]) -> set[str]:
    """Stages whose threads, by params.yaml, are as many as there are cores; none where they run on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device_of(root) != "cpu" or cores == 1:
        return set()
    params = read_yaml(root / "params.yaml")
    return {stage for stage in stages if _threads(params, stage, cores) >= cores}


def _threads(params: Mapping[str, Any], stage: str, cores: int) -> int:
    """Threads of each process of a stage; 1 of one that has no such key, since it does not train."""
    method, _, policy = stage.partition("@")
    section = dict(params.get(method) or {})
    section |= ((params.get("policies") or {}).get(method) or {}).get(policy) or {}
    if "threads" not in section:
        return 1
    return int(section["threads"] or params["compute"]["threads"] or cores)
