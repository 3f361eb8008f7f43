"""What made a model, as one nested value: `prefloop trace --json` prints it, `showing` words it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from prefloop.config.read import LOADER
from prefloop.files import sha256_text
from tasks.support.flatten import flatten
from tasks.support.lineage import DATA, PARAMS, SOURCES, Lineage, Making
from tasks.support.objects import Objects
from tasks.support.pipeline import MAIN_FIGURES
from tasks.support.reads import section_of
from tasks.support.redact import redact

_LAYOUT = ("processes", "sharding")
"""How a training was laid out: the stage key leaves it out, too."""
_IMPORT = re.compile(r"\d{3,}-\w+")
_RECORD = ("key", "run", "mlflow_run_id", "pipeline", "start", "end", "git_commit", "git_dirty")


def trace(lineage: Lineage, making: Making) -> dict[str, Any]:
    """The model, its stage, code, parameters, environment, data, ancestors and evaluations."""
    record = lineage.record(making)
    parameters = _parameters(making)
    usual = _committed(lineage.root, making, str(record.get("git_commit") or ""))
    return {
        "model": {"path": making.model, "hash": making.outs[making.model], "current": making.current},
        "stage": making.stage,
        **_of_record(record),
        "code": making.code,
        "parameters": parameters,
        "changed_parameters": None
        if usual is None
        else {key: value for key, value in parameters.items() if usual.get(key) != value},
        "environment": making.environment,
        "environment_fingerprint": fingerprint(making.environment),
        "data": [_data(lineage, path, digest) for path, digest in making.deps.items() if _is_data(path)],
        "ancestors": [_ancestor(lineage, other) for other in lineage.ancestors(making)],
        "forgotten": lineage.missing_parents(making),
        "evaluations": _evaluations(lineage, making),
    }


def fingerprint(environment: Mapping[str, Any]) -> str:
    """32 hex digits over what results depend on besides code, data and parameters; "" where nothing is
    recorded."""
    counted = {key: value for key, value in environment.items() if key not in _LAYOUT}
    return sha256_text(json.dumps(counted, sort_keys=True))[:32] if counted else ""


def is_commit(text: str) -> bool:
    """True for what can only be a commit: records are files, and git takes options in its place."""
    return bool(re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text))


def count_rows(objects: Objects, path: str, digest: str) -> int | None:
    """Lines of a file that are not blank; None where these contents are nowhere."""
    file = objects.find(digest, path)
    if file is None:
        return None
    with open(file, "rb") as handle:
        return sum(1 for line in handle if line.strip())


def _of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in _RECORD}


def _parameters(making: Making) -> dict[str, Any]:
    """The knobs of its section, with the seed; secrets hidden."""
    section = section_of(making.group, making.part, making.parameters) or making.parameters
    flat = flatten({"seed": making.parameters.get("seed"), making.group: section})
    return {
        key: value if redact(key, value) == str(value) else redact(key, value) for key, value in flat.items()
    }


def _committed(root: Path, making: Making, commit: str) -> dict[str, Any] | None:
    """The same knobs as params.yaml had them in the commit; None where that cannot be read."""
    if not is_commit(commit):
        return None
    shown = subprocess.run(
        ["git", "-C", str(root), "show", f"{commit}:./{PARAMS}"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        return None
    try:
        values = yaml.load(shown.stdout, LOADER) or {}
    except yaml.YAMLError:
        return None
    section = section_of(making.group, making.part, values)
    return flatten({"seed": values.get("seed"), making.group: section})


def _is_data(path: str) -> bool:
    return path.startswith(DATA)


def _data(lineage: Lineage, path: str, digest: str) -> dict[str, Any]:
    rows = None if path == SOURCES else count_rows(lineage.objects, path, digest)
    return {"path": path, "hash": digest, "rows": rows}


def _ancestor(lineage: Lineage, making: Making) -> dict[str, Any]:
    record = lineage.record(making)
    found: dict[str, Any] = {
        "stage": making.stage,
        **_of_record(record),
        "code": making.code,
        "environment_fingerprint": fingerprint(making.environment),
        "reads": {path: digest for path, digest in making.deps.items() if path.startswith(("models/", DATA))},
        "writes": {
            path: digest for path, digest in making.outs.items() if path.startswith(("models/", DATA))
        },
        "parents": [parent.stage for parent in lineage.parents(making)],
    }
    if making.group == "ingest":
        found["imports"] = import_names(lineage, making)
    return found


def import_names(lineage: Lineage, ingest: Making) -> list[str] | None:
    """The versions under data/sources/ that ingest read; None where its figures are nowhere."""
    path = "metrics/ingest.json"
    if path not in ingest.outs:
        return []
    figures = lineage.objects.json(ingest.outs[path], path)
    if figures is None:
        return None
    return [name for name in figures["sources"] if _IMPORT.fullmatch(name)]


def _evaluations(lineage: Lineage, making: Making) -> list[dict[str, Any]]:
    """Every evaluation of these very bytes, and what its own training measured on rows it held out."""
    found = []
    for other in lineage.every():
        same = other.deps.get(making.model) == making.outs[making.model]
        if other.group == "evaluate" and same and other.part in ("", making.name):
            found.append(_figures(lineage, other))
    own = _figures(lineage, making)
    return [*found, own] if own["figures"] else found


def _figures(lineage: Lineage, making: Making) -> dict[str, Any]:
    record = lineage.record(making)
    path = next((path for path in making.outs if path.startswith("metrics/")), "")
    values = (lineage.objects.json(making.outs[path], path) if path else None) or {}
    flat = flatten(values)
    intervals = {
        key.removesuffix(".ci95"): {"mean": flat.get(f"{key.removesuffix('.ci95')}.mean"), "ci95": value}
        for key, value in flat.items()
        if key.endswith(".ci95") and "by_kind" not in key
    }
    single = {key: {"mean": flat[key]} for key in MAIN_FIGURES if isinstance(flat.get(key), (int, float))}
    names = {f"{name}.mean" for name in intervals}
    return {
        "stage": making.stage,
        "key": record.get("key"),
        "run": record.get("run"),
        "prompts": {path: digest for path, digest in making.deps.items() if _is_data(path)},
        "figures": {**intervals, **{key: value for key, value in single.items() if key not in names}},
    }
