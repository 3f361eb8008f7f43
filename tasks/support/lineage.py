"""What made what: the entries of dvc.lock, and those of earlier runs that DVC's run-cache remembers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from tasks.support.code import CODE, load_yaml, stage_module
from tasks.support.keys import ENVIRONMENT
from tasks.support.objects import Objects
from tasks.support.reads import models_read

LOCK = "dvc.lock"
PARAMS = "params.yaml"
_FLOAT = re.compile(r"-?\d+(\.\d+)?e[-+]\d+")
MODELS, DATA, SOURCES = "models/", "data/", "data/sources"


@dataclass(frozen=True)
class Making:
    """One run of one stage, as DVC has it.

    Attributes:
        stage: as dvc.yaml names it: "sft", "ppo@ppo-loose".
        deps, outs: path -> DVC hash of what it read and wrote.
        params: parameter file -> dotted key -> value, as it read them.
        current: True for an entry of dvc.lock, False for one of the run-cache.
    """

    stage: str
    deps: Mapping[str, str]
    outs: Mapping[str, str]
    params: Mapping[str, Mapping[str, Any]]
    current: bool

    @property
    def group(self) -> str:
        """What stands before the @."""
        return self.stage.partition("@")[0]

    @property
    def part(self) -> str:
        """What stands after it, "" without one."""
        return self.stage.partition("@")[2]

    @property
    def model(self) -> str:
        """The model folder that it wrote, "" for none."""
        return next((path for path in self.outs if path.startswith(MODELS)), "")

    @property
    def name(self) -> str:
        """The name of that folder."""
        return PurePosixPath(self.model).name

    @property
    def code(self) -> str:
        """Fingerprint of the stage's code."""
        return str(self.params.get(CODE, {}).get(self.group, ""))

    @property
    def environment(self) -> dict[str, Any]:
        """Device, precision, threads and versions, where its result follows from them."""
        return dict(self.params.get(ENVIRONMENT, {}))

    @property
    def parameters(self) -> dict[str, Any]:
        """What it read of params.yaml, as that file nests it."""
        nested: dict[str, Any] = {}
        for key, value in self.params.get(PARAMS, {}).items():
            *parents, last = key.split(".")
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        return nested


class Lineage:
    """All that a workspace remembers having made.

    Args:
        root: the workspace.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = Objects(root)
        lock = load_yaml(root / LOCK).get("stages", {}) if (root / LOCK).exists() else {}
        self._names = {str(entry.get("cmd")): stage for stage, entry in lock.items()}
        self.current = [_making(stage, entry, current=True) for stage, entry in lock.items()]

    @cached_property
    def earlier(self) -> list[Making]:
        """What the run-cache keeps and dvc.lock does not have, newest first."""
        runs = [file for file in self.objects.cache.glob("runs/*/*/*") if not file.name.endswith(".tmp")]
        runs.sort(key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
        known = {_identity(making) for making in self.current}
        found = []
        for file in runs:
            entry = load_yaml(file)
            making = _making(self._stage(str(entry.get("cmd", ""))), entry, current=False)
            if _identity(making) not in known:
                known.add(_identity(making))
                found.append(making)
        return found

    def every(self) -> Iterator[Making]:
        """Current ones first, then earlier ones, newest first."""
        yield from self.current
        yield from self.earlier

    def models(self) -> list[Making]:
        """Those that wrote a model."""
        return [making for making in self.every() if making.model]

    def made(self, path: str, digest: str) -> Making | None:
        """What wrote these bytes to this path; of several the current one, else the newest."""
        if path.startswith(SOURCES):
            return None  # people bring these
        return self._now.get((path, digest)) or self._ever.get((path, digest))

    @cached_property
    def _now(self) -> dict[tuple[str, str], Making]:
        return {out: making for making in self.current for out in making.outs.items()}

    @cached_property
    def _ever(self) -> dict[tuple[str, str], Making]:
        return {out: making for making in reversed(self.earlier) for out in making.outs.items()}

    def parents(self, making: Making) -> list[Making]:
        """What wrote the models and the data that it read; of what it left alone, nothing."""
        models = models_read(making.group, making.parameters, making.deps)
        read = [path for path in making.deps if path in models or path.startswith(DATA)]
        found = [self.made(path, making.deps[path]) for path in read]
        return list(_unique(parent for parent in found if parent is not None))

    def missing_parents(self, making: Making) -> list[str]:
        """Models and data that it read, and that nothing here remembers having made."""
        models = models_read(making.group, making.parameters, making.deps)
        made = {path for parent in self.parents(making) for path in parent.outs}
        data = [path for path in making.deps if path.startswith(DATA) and path != SOURCES]
        return [path for path in (*models, *data) if path not in made]

    def ancestors(self, making: Making) -> list[Making]:
        """Its parents, then theirs, each once."""
        found: list[Making] = []
        waiting = self.parents(making)
        while waiting:
            found += waiting
            waiting = list(_unique(p for m in waiting for p in self.parents(m) if p not in found))
        return found

    def record(self, making: Making) -> dict[str, Any]:
        """Its runs/<stage>.json; empty where that is neither in the workspace nor in the cache."""
        path = next((path for path in making.outs if path.startswith("runs/")), "")
        return dict(self.objects.json(making.outs[path], path) or {}) if path else {}

    def with_key(self, key: str) -> Making | None:
        """The model of a stage key."""
        return next((making for making in self.models() if self.record(making).get("key") == key), None)

    def _stage(self, command: str) -> str:
        """The stage that a command is of: dvc.lock knows, else it says so itself."""
        if command in self._names:
            return str(self._names[command])
        module, words = stage_module(command), shlex.split(command)
        group = module.rpartition(".")[2] or command
        if group not in self._groups and group.replace("_", "-") in self._groups:
            group = group.replace("_", "-")
        last = words[words.index(module) + 1 :] if module in words else []
        return f"{group}@{last[0]}" if last else group

    @cached_property
    def _groups(self) -> set[str]:
        path = self.root / "dvc.yaml"
        return set(load_yaml(path).get("stages", {})) if path.exists() else set()


def _making(stage: str, entry: Mapping[str, Any], *, current: bool) -> Making:
    return Making(
        stage=stage,
        deps={str(dep["path"]): str(dep.get("md5", "")) for dep in entry.get("deps", [])},
        outs={str(out["path"]): str(out.get("md5", "")) for out in entry.get("outs", [])},
        params=_numbers(entry.get("params", {})),
        current=current,
    )


def _numbers(value: Any) -> Any:
    """The same with floats where DVC wrote them as 1e-08, which a reader of YAML 1.1 takes for text."""
    if isinstance(value, Mapping):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _FLOAT.fullmatch(value) else value


def _identity(making: Making) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Its record is an output and has a time in it: no two runs have equal ones."""
    return making.stage, tuple(sorted(making.outs.items()))


def _unique(makings: Iterable[Making]) -> Iterator[Making]:
    seen = set()
    for making in makings:
        if _identity(making) not in seen:
            seen.add(_identity(making))
            yield making
