"""A folder in which a model can be made again: its commit, its parameters, its data. The workspace that it
comes from is only read."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.provenance.tracing import import_names
from flows.workers.code import bring_commit
from flows.workers.exchange import exchange_of
from prefloop.errors import DataError, WorkspaceError
from prefloop.files import atomic_file
from tasks.support.code import Code, all_code, parse_yaml
from tasks.support.keys import read_inputs
from tasks.support.lineage import LOCK, PARAMS, SOURCES, Lineage, Making

_VERSION = re.compile(r"\d{3,}-\w+(\.dvc)?")
_OWN_CACHE = "[cache]\n    dir = cache\n"


def refuse_unless_empty(folder: Path, root: Path) -> None:
    """Raises WorkspaceError for a folder with something in it, and for one inside the workspace."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise WorkspaceError(f"{folder} is not empty", "name a folder that is not there yet, or an empty one")
    if folder.resolve().is_relative_to(root.resolve()):
        raise WorkspaceError(
            f"{folder} lies in the workspace, which stays as it is", "name a folder elsewhere"
        )


def check_out(root: Path, folder: Path, commit: str) -> None:
    """Clones the commit into the folder.

    A commit that only workers had is looked for where the workspace published it to them.

    Raises:
        WorkspaceError: git has no such commit here.
    """
    _git(root, "clone", "--quiet", "--no-checkout", "--local", str(root.resolve()), str(folder.resolve()))
    try:
        bring_commit(folder, exchange_of(root).storage, commit)
    except WorkspaceError as error:
        raise WorkspaceError(
            f"git has no commit {commit} here", "fetch it: git fetch --all, then try again"
        ) from error
    _git(folder, "checkout", "--quiet", "--detach", commit)
    (folder / LOCK).unlink(missing_ok=True)  # what it says was made elsewhere; here all is to be made anew
    (folder / ".dvc").mkdir(exist_ok=True)
    (folder / ".dvc" / "config.local").write_text(_OWN_CACHE, encoding="utf-8")


def other_code(lineage: Lineage, makings: Sequence[Making], folder: Path) -> dict[str, list[str]]:
    """Stages whose code or inputs in the clone are not those that they ran with -> the files that differ."""
    here = all_code(folder)
    found = {}
    for making in makings:
        kept = (lineage.record(making).get("code") or {}).get("files")
        then = Code(kept) if kept else None
        now = here.get(making.group)
        ran, is_here = then.fingerprint if then else making.code, now.fingerprint if now else ""
        if ran != is_here:
            names = {*(then.files if then else ()), *(now.files if now else ())}
            found[making.stage] = [
                name
                for name in sorted(names)
                if then is None or now is None or then.files.get(name) != now.files.get(name)
            ]
        inputs = read_inputs(making.stage, folder)
        if inputs is None or set(inputs.deps) != set(making.deps):
            found.setdefault(making.stage, []).append("dvc.yaml")
    return found


def set_parameters(folder: Path, makings: Sequence[Making], environment: Mapping[str, Any]) -> list[str]:
    """Writes into the clone's params.yaml what the stages read; returns the keys that differed.

    Device, precision and threads become those that were resolved then: another machine decides nothing.
    """
    path = folder / PARAMS
    yaml: Any = YAML()
    yaml.preserve_quotes, yaml.width = True, 4096
    document = yaml.load(path.read_text(encoding="utf-8"))
    wanted = {key: value for making in makings for key, value in making.params.get(PARAMS, {}).items()}
    for name in ("threads", "precision"):
        if name in environment and name in document.get("compute", {}):
            wanted[f"compute.{name}"] = environment[name]
    if environment.get("device") == "cpu" and "device" in document.get("compute", {}):
        wanted["compute.device"] = "cpu"
    changed = [key for key, value in wanted.items() if _put(document, key, value)]
    policies = (document.get("evaluate") or {}).get("policies")
    for making in makings:
        if making.part and making.model and policies is not None and making.part not in policies:
            policies.append(making.part)
    with atomic_file(path) as handle:
        yaml.dump(document, handle)
    return changed


def bring_imports(lineage: Lineage, ingest: Making, folder: Path, commit: str) -> list[str]:
    """Puts the imports that ingest read under the clone's data/sources/, and no others; returns their names.

    Raises:
        DataError: one is no longer here, or was changed.
    """
    names = import_names(lineage, ingest)
    if names is None:
        raise DataError(
            "which imports were read cannot be told: metrics/ingest.json as it was is not in DVC's cache",
            "fetch it: dvc fetch, or dvc fetch --run-cache",
        )
    target = folder / SOURCES
    target.mkdir(parents=True, exist_ok=True)
    for entry in list(target.iterdir()):
        if _VERSION.fullmatch(entry.name):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for name in names:
        text = _pointer(lineage.root, name, commit)
        (target / f"{name}.dvc").write_text(text, encoding="utf-8")
        (out,) = parse_yaml(text)["outs"]
        path = f"{SOURCES}/{name}"
        for relative, digest in lineage.objects.files(str(out["md5"]), path).items():
            copy = target / name / relative
            if not copy.resolve().is_relative_to((target / name).resolve()):
                raise DataError(f"the listing of {path} names {relative}, which lies outside of it")
            source = lineage.objects.find(digest, f"{path}/{relative}")
            if source is None:
                raise DataError(
                    f"{path}/{relative} is neither in DVC's cache nor in the workspace",
                    f"fetch it: dvc fetch {path}.dvc",
                )
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)  # a copy: an edit in the clone must never reach the cache
    return names


def _pointer(root: Path, name: str, commit: str) -> str:
    """The .dvc file of an import, as the workspace or the commit has it."""
    path = f"{SOURCES}/{name}.dvc"
    if (root / path).exists():
        return (root / path).read_text(encoding="utf-8")
    shown = subprocess.run(
        ["git", "-C", str(root), "show", f"{commit}:./{path}"], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        raise DataError(f"the import {name} is no longer known: {path} is missing", "restore it from git")
    return shown.stdout


def _put(document: Any, key: str, value: Any) -> bool:
    """Sets a dotted key; False where it has the value."""
    *parents, last = key.split(".")
    inner = document
    for parent in parents:
        if inner.get(parent) is None:
            inner[parent] = {}
        inner = inner[parent]
    if last in inner and inner[last] == value:
        return False
    inner[last] = value
    return True


def _git(folder: Path, *arguments: str) -> None:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkspaceError(f"git {arguments[0]} failed: {done.stderr.strip()}", "git fetch, then try again")
