"""The folder: git, DVC, parameters, disk, and what an earlier run left."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from flows.checks.check import Check, broken, listed, note, ok
from flows.leftovers import in_hand, unfinished
from flows.settings import STATE
from prefloop.config.params import load_params
from prefloop.errors import ConfigError
from tasks.support.locks import held, holder
from tasks.support.workspace import slug

GIB = 1 << 30
LEAST_DISK_GIB, GOOD_DISK_GIB = 1, 5


def workspace(root: Path) -> Iterator[Check]:
    """Every check of this file."""
    yield git(root)
    yield dvc(root)
    yield parameters(root)
    yield disk(shutil.disk_usage(root).free)
    yield writable(root)
    yield from locks(root)
    yield cut_off(root)


def git(root: Path) -> Check:
    """The folder is a git repository with a commit: runs record it, and DVC needs it."""
    if shutil.which("git") is None:
        return broken("git", "the command is missing", "install git")
    if _git(root, "rev-parse", "--is-inside-work-tree") != "true":
        return broken("git", "this folder is no git repository", "git clone the project, or: git init")
    commit = _git(root, "rev-parse", "--short", "HEAD")
    if not commit:
        return note("git", "there is no commit yet", "git add -A; git commit: runs record what they ran")
    changed = len(_git(root, "status", "--porcelain", "--untracked-files=no").splitlines())
    return ok("git", f"at {commit}{f', {changed} files changed since' if changed else ''}")


def dvc(root: Path) -> Check:
    """The folder is a DVC project, and no dead process holds its locks."""
    for name in (".dvc/config", "dvc.yaml"):
        if not (root / name).exists():
            return broken("dvc", f"{name} is missing", f"git checkout {name}")
    dead = _dead_holders(root / ".dvc" / "tmp" / "rwlock")
    if dead:
        return note(
            "dvc", f"locks of processes that ended (pids {listed(dead)})", "the next prefloop run clears them"
        )
    return ok("dvc", "configured, no lock left over")


def parameters(root: Path) -> Check:
    """params.yaml is whole and its values fit together."""
    try:
        load_params(root / "params.yaml")
    except ConfigError as error:
        return broken("params.yaml", error.message, error.remedy or "mend the value")
    return ok("params.yaml", "valid")


def disk(free: int) -> Check:
    """Room for models and their copies in the cache (`free` in bytes)."""
    gib = free / GIB
    if gib < LEAST_DISK_GIB:
        return broken(
            "disk", f"{gib:.1f} GiB free", "free some space; `dvc gc -w` drops what no stage needs any more"
        )
    if gib < GOOD_DISK_GIB:
        return note(
            "disk", f"{gib:.1f} GiB free", "enough for the embedded world, not for models from the hub"
        )
    return ok("disk", f"{gib:.0f} GiB free")


def writable(root: Path) -> Check:
    """The workspace's own folder can be written, and takes the locks that keep two runs apart."""
    probe = root / STATE / "doctor.lock"
    try:
        with held(probe, "the doctor's probe"):
            pass
        probe.unlink()
    except OSError as error:
        return broken(
            "state", f"{root / STATE} cannot be used: {error.strerror}", "use a local disk and own the folder"
        )
    return ok("state", f"{STATE}/ can be written and locked")


def locks(root: Path) -> Iterator[Check]:
    """Whether a run is live now."""
    live = []
    for path in sorted((root / STATE / "locks").glob("*.lock")):
        found = holder(path)
        if found is not None:
            live.append(f"{path.stem} (pid {found.process.pid if found.process else 'unknown'})")
    if live:
        yield note("live run", f"in hand now: {listed(live)}", "wait for it before you start another here")
    else:
        yield ok("live run", "none")


def cut_off(root: Path) -> Check:
    """Stages that were cut off; the next run continues them."""
    at = in_hand(root)
    if stages := {stage for stage in unfinished(root) if slug(stage) not in at}:
        remedy = "prefloop run with the same parameters goes on from the last checkpoint"
        return note("cut off", listed(stages), remedy)
    return ok("cut off", "nothing")


def _dead_holders(rwlock: Path) -> set[str]:
    """Pids in DVC's lock file whose processes are gone."""
    try:
        content = json.loads(rwlock.read_text(encoding="utf-8") or "{}")
    except (OSError, ValueError):
        return set()
    pids = set()
    for entry in content.values():
        for held_by in (entry.get("write"), *(entry.get("read") or [])):
            if held_by and not psutil.pid_exists(int(held_by["pid"])):
                pids.add(str(held_by["pid"]))
    return pids


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else ""
