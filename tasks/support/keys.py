"""The stage key: one hash over everything a stage's result follows from. It names the scratch folder, so that
a stage resumes only what was computed from the same inputs, and it is how two runs are known to have made the
same model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from prefloop.errors import ConfigError
from prefloop.files import sha256_file
from tasks.support.code import CODE, Code, load_yaml, parse_yaml

CONTENT_LIMIT_BYTES = 256 * 2**20
"""Inputs up to this size are read; larger ones are known by the hash that dvc.lock keeps of them."""
ENVIRONMENT = "runs/environment.json"


@dataclass(frozen=True)
class StageInputs:
    """What dvc.yaml says that a stage reads.

    Attributes:
        deps: files and folders.
        params: (file, dotted key) pairs; an empty key stands for the whole file.
    """

    deps: tuple[str, ...]
    params: tuple[tuple[str, str], ...]


def read_inputs(stage: str, root: Path = Path(".")) -> StageInputs | None:
    """Dependencies of `stage` ("sft", "evaluate@ppo"); None where no dvc.yaml declares it."""
    path = root / "dvc.yaml"
    if not path.exists():
        return None
    declared = load_yaml(path).get("stages", {})
    name, _, part = stage.partition("@")
    entry = declared.get(name)
    if entry is None:
        return None
    if part:
        entry = _substitute(entry.get("do", entry), {"item": part, "key": part})
    params: list[tuple[str, str]] = []
    for item in entry.get("params", []):
        if isinstance(item, Mapping):
            for file, keys in item.items():
                params += [(str(file), str(key)) for key in keys or [""]]
        else:
            params.append(("params.yaml", str(item)))
    deps = [next(iter(dep)) if isinstance(dep, Mapping) else dep for dep in entry.get("deps", [])]
    return StageInputs(tuple(map(str, deps)), tuple(params))


def stage_key(
    stage: str, fallback: Mapping[str, Any], root: Path = Path("."), code: Code | None = None
) -> str:
    """Hex SHA-256 over the stage's name, its code, the parameters it reads and the hashes of its inputs.

    How many processes share a training, and whether they share its weights, is left out: the result is the
    same up to rounding, and a stage goes on from a checkpoint that others wrote.

    Args:
        fallback: what stands for the inputs where no dvc.yaml declares the stage.
        code: what runs; by default what runs/code.json says.
    """
    inputs = read_inputs(stage, root)
    described: dict[str, Any] = {"stage": stage}
    if inputs is None:
        described["fallback"] = fallback
    else:
        locked = locked_hashes(root)
        values = {CODE: {stage.partition("@")[0]: code.fingerprint}} if code else {}
        values |= {file: _load(root / file) for file in {file for file, _ in inputs.params} - values.keys()}
        described["params"] = [[file, key, _lookup(values[file], key)] for file, key in inputs.params]
        described["deps"] = [[dep, input_hash(dep, locked, root)] for dep in sorted(inputs.deps)]
        for file, key, value in described["params"]:
            if (file, key) == (ENVIRONMENT, "") and isinstance(value, dict):
                value.pop("processes", None)
                value.pop("sharding", None)
    text = json.dumps(described, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def input_hash(dep: str, locked: Mapping[str, str], root: Path = Path(".")) -> str:
    """Hash of one dependency: of its bytes, or for what is large the one in dvc.lock; "" when it is
    missing."""
    path = root / dep
    if dep in locked and _size(path) > CONTENT_LIMIT_BYTES:
        return locked[dep]
    if path.is_dir():
        digest = hashlib.sha256()
        for file in _files(path):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
        return digest.hexdigest()
    return sha256_file(path) if path.exists() else ""


def locked_hashes(root: Path = Path(".")) -> dict[str, str]:
    """Path -> DVC hash of every output in dvc.lock, and of what *.dvc files beside the data track."""
    lock = root / "dvc.lock"
    hashes = dict(_hashes_in(lock.read_text(encoding="utf-8"))) if lock.exists() else {}
    for pointer in sorted((root / "data" / "sources").glob("*.dvc")):
        for out in load_yaml(pointer).get("outs", []):
            hashes[(pointer.parent / out["path"]).relative_to(root).as_posix()] = out.get("md5", "")
    return hashes


@lru_cache(maxsize=1)
def _hashes_in(lock: str) -> Mapping[str, str]:
    """Of every output that the text of a dvc.lock has; a stage asks for each of its datasets."""
    hashes: dict[str, str] = {}
    for entry in parse_yaml(lock).get("stages", {}).values():
        hashes |= {out["path"]: out["md5"] for out in entry.get("outs", []) if "md5" in out}
    return hashes


def dvc_hash(path: Path, locked: Mapping[str, str]) -> str:
    """The hash that DVC has of a file; of an untracked one, its content's.

    Files without a hash of their own in dvc.lock that lie in a tracked folder count as untracked.
    """
    return locked.get(path.as_posix()) or input_hash(path.as_posix(), {})


def _substitute(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{\s*(item|key)\s*\}", lambda match: names[match.group(1)], value)
    if isinstance(value, Mapping):
        return {_substitute(key, names): _substitute(item, names) for key, item in value.items()}
    return [_substitute(item, names) for item in value] if isinstance(value, list) else value


def _load(path: Path) -> Any:
    if not path.exists():
        raise ConfigError(f"{path} is missing", "run the stage that writes it: prefloop plan shows which")
    return load_yaml(path)  # JSON is YAML too


def _lookup(values: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(parent) / name for name in sorted(names))


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in _files(path))
    return path.stat().st_size if path.exists() else 0
