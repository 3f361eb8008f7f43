"""Making a model again in a clone, and holding it against what the workspace has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flows.provenance import clone
from flows.provenance.tracing import fingerprint, is_commit
from flows.settings import child_environment
from prefloop.errors import DataError, WorkspaceError
from tasks.support.lineage import DATA, Lineage, Making
from tasks.support.objects import md5

Say = Callable[[str], None]
_OURS = ("DVC_", "PREFLOOP_", "PREFECT_")
"""Variables that would tie the clone to the workspace that a command was given in."""


@dataclass(frozen=True)
class Rebuilt:
    """What came of it.

    Attributes:
        identical: True when every file of the model has the same bytes.
        differs: files of the model -> "changed", "missing" or "new".
        first: the first stage on the way to the model that wrote something else, and what; "" for none.
        fingerprints_equal: whether the environments promise equal bytes.
        environment: what differs between them, as (then, now).
        code: stages whose code in the clone is not what made them -> files.
        damaged: files of the workspace or its cache that are not what dvc.lock says.
    """

    model: str
    folder: str
    commit: str
    stages: tuple[str, ...]
    identical: bool
    differs: Mapping[str, str]
    first: str
    fingerprints_equal: bool
    environment: Mapping[str, tuple[Any, Any]]
    code: Mapping[str, list[str]]
    damaged: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def rebuild(lineage: Lineage, making: Making, folder: Path, *, dirty: bool, say: Say) -> Rebuilt:
    """Clones, runs the stages that the model needs, and compares.

    Args:
        folder: empty, or not there yet.
        dirty: go on although the commit is not the code that made the model.

    Raises:
        WorkspaceError: the folder is in use, the commit is unknown or is not what made the model, or a stage
            failed. DataError: data that it needs is gone or was changed.
    """
    root = lineage.root
    clone.refuse_unless_empty(folder, root)
    record = lineage.record(making)
    commit = str(record.get("git_commit") or "")
    if not is_commit(commit):
        raise WorkspaceError(
            f"which commit made {making.model} is not recorded"
            if record
            else f"the record of {making.model} is gone",
            "fetch it: dvc fetch, or dvc fetch --run-cache",
        )
    makings = [making, *lineage.ancestors(making)]
    if forgotten := [path for one in makings for path in lineage.missing_parents(one)]:
        raise DataError(
            f"nothing here remembers what made {', '.join(forgotten)}, from which {making.model} was made",
            "rebuild it where it was made, or fetch the memory: dvc fetch --run-cache",
        )
    existed = folder.exists()
    try:
        clone.check_out(root, folder, commit)
        other = clone.other_code(lineage, makings, folder)
        _consider(record, commit, other, dirty, say)
        changed = clone.set_parameters(folder, makings, making.environment)
        say(f"parameters: {', '.join(changed) or 'none'} set to what the stages read")
        if ingest := next((one for one in makings if one.group == "ingest"), None):
            names = clone.bring_imports(lineage, ingest, folder, commit)
            say(f"imports: {', '.join(names) or 'none'}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # it was empty, or not there
        if existed:
            folder.mkdir()
        raise
    say(f"runs {making.stage} and what it needs in {folder}")
    _run(folder, making.stage, say)
    return _compare(lineage, makings, Lineage(folder), folder, commit, other)


def _consider(
    record: Mapping[str, Any], commit: str, other: Mapping[str, list[str]], dirty: bool, say: Say
) -> None:
    """Raises WorkspaceError where the code that made the model was never committed."""
    if not record.get("git_dirty"):
        for stage, files in other.items():
            say(f"{stage} was made by other code than the commit's: {', '.join(files[:5]) or 'not recorded'}")
        return
    if not other:
        say(f"commit {commit[:12]} had uncommitted changes, none of them in the code of these stages")
        return
    files = sorted({file for files in other.values() for file in files})
    named = ", ".join(files[:8]) or "its code"
    what = f"commit {commit[:12]} is not what made it: {named} had uncommitted changes"
    if not dirty:
        raise WorkspaceError(
            what,
            "rebuild with --dirty to see how far the commit alone comes, or commit the changes and run again",
        )
    say(what)


def _run(folder: Path, stage: str, say: Say) -> None:
    environment = {name: value for name, value in child_environment().items() if not name.startswith(_OURS)}
    modules = [str(folder.resolve()), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(modules)
    environment |= {"PREFLOOP_TRACKING": "off", "DVC_NO_ANALYTICS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", stage],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    last: list[str] = []
    try:
        for line in process.stdout:
            last = [*last[-7:], line.rstrip()]
            say(line.rstrip())
        status = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if status:
        raise WorkspaceError(
            f"rebuilding {stage} failed in {folder}:\n  " + "\n  ".join(last),
            f"mend what it says; `dvc repro {stage}` in {folder} goes on from there",
        )


def _compare(
    lineage: Lineage,
    makings: list[Making],
    made: Lineage,
    folder: Path,
    commit: str,
    other: dict[str, list[str]],
) -> Rebuilt:
    making = makings[0]
    anew = {one.stage: one for one in made.current}
    again = anew[making.stage]
    before = lineage.objects.files(making.outs[making.model], making.model)
    after = made.objects.files(again.outs[making.model], making.model)
    words = {(True, True): "changed", (False, True): "new", (True, False): "missing"}
    differs = {
        name: words[name in before, name in after]
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    }
    then, now = making.environment, again.environment
    return Rebuilt(
        model=making.model,
        folder=str(folder),
        commit=commit,
        stages=tuple(one.stage for one in makings),
        identical=not differs,
        differs=differs,
        first=_first(makings, anew),
        fingerprints_equal=fingerprint(then) == fingerprint(now),
        environment={
            key: (then.get(key), now.get(key)) for key in {*then, *now} if then.get(key) != now.get(key)
        },
        code=other,
        damaged=tuple(_damaged(lineage, making, before)),
    )


def _first(makings: list[Making], anew: Mapping[str, Making]) -> str:
    """The stage farthest from the model that wrote something else: what follows may differ for that alone."""
    for one in reversed(makings):
        again = anew.get(one.stage)
        for path, digest in one.outs.items():
            if path.startswith(("models/", DATA)) and (again is None or again.outs.get(path) != digest):
                return f"{one.stage}: {path}"
    return ""


def _damaged(lineage: Lineage, making: Making, files: Mapping[str, str]) -> list[str]:
    """What lies on the disk under the model's name and is not what dvc.lock says."""
    found = [f"{file} (of {path})" if path else str(file) for file, path in lineage.objects.damaged.items()]
    for name, digest in files.items():
        kept = lineage.objects.cache / "files" / "md5" / digest[:2] / digest[2:]
        here = lineage.root / making.model / name
        found += [
            str(file)
            for file in (kept, *((here,) if making.current else ()))
            if file.is_file() and md5(file) != digest and file not in lineage.objects.damaged
        ]
    return found
