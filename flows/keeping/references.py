"""What git refers to in DVC's cache: by any branch, tag, stash or experiment, and by files that lie here."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.settings import STATE
from prefloop.errors import WorkspaceError
from tasks.support.code import parse_yaml

_HASH = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?(?![0-9a-z])")
_PRUNED = {".git", ".venv", ".prefloop", "node_modules", "__pycache__"}


@dataclass(frozen=True)
class References:
    """What dvc.lock and *.dvc files name.

    Attributes:
        hashes: of files and folders.
        records: hashes of the files in runs/ alone: they say which runs made the rest.
    """

    hashes: frozenset[str]
    records: frozenset[str]


def find_references(root: Path) -> References:
    """Every hash that a commit some name stands for, the working tree or a clone of this workspace names.

    All 32 hexadecimal digits in such a file count, whatever stands before them: entries of stages that
    dvc.yaml lost, and outputs that DVC does not cache, are named, too.

    Raises:
        WorkspaceError: git cannot be asked.
    """
    locks, pointers = _committed(root)
    for file in _files(root):
        text = file.read_text(encoding="utf-8", errors="replace")
        (locks if file.name == "dvc.lock" else pointers).append(text)
    hashes = {found for text in (*locks, *pointers) for found in _HASH.findall(text)}
    return References(frozenset(hashes), frozenset(_records(set(locks))))


def _committed(root: Path) -> tuple[list[str], list[str]]:
    """Texts of dvc.lock, and lines of *.dvc files, in every commit that a name stands for."""
    if _git(root, "rev-parse", "--is-inside-work-tree") is None:
        raise WorkspaceError(
            "git cannot tell which branches there are", "run in the root of the project's git repository"
        )
    commits = _commits(root)
    blobs = {blob for commit in commits if (blob := _git(root, "rev-parse", f"{commit}:./dvc.lock"))}
    locks = [_git(root, "cat-file", "blob", blob) for blob in sorted(blobs)]
    lines = ("grep", "-h", "-I", "-E", "[0-9a-f]{32}")
    # A dvc.lock in a subfolder is a pipeline of its own.
    pointers = [_git(root, *lines, commit, "--", "*.dvc", "*/dvc.lock") for commit in commits]
    return [text for text in locks if text], [text for text in pointers if text]


def _commits(root: Path) -> list[str]:
    named = _git(root, "for-each-ref", "--format=%(objecttype) %(objectname) %(*objecttype) %(*objectname)")
    found = []
    for line in (named or "").splitlines():
        kind, name, *of_tag = line.split()
        if kind == "commit":
            found.append(name)
        elif of_tag[:1] == ["commit"]:
            found.append(of_tag[1])
    for arguments in (("rev-parse", "--verify", "--quiet", "HEAD"), ("rev-list", "-g", "refs/stash", "--")):
        found += (_git(root, *arguments) or "").split()
    return sorted(set(found))


def _files(root: Path) -> Iterator[Path]:
    """dvc.lock and *.dvc of the working tree, of clones that a run of several seeds keeps, of experiments
    that DVC runs in temporary clones, and of git's other working trees."""
    folders = [root, *(root / STATE / "seeds").glob("*"), root / ".dvc/tmp/exps"]
    listed = _git(root, "worktree", "list", "--porcelain") or ""
    folders += [Path(line.split(" ", 1)[1]) for line in listed.splitlines() if line.startswith("worktree ")]
    for folder in dict.fromkeys(path.absolute() for path in folders):
        yield from _pointers_in(folder)


def _pointers_in(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _PRUNED]
        if Path(parent).name == ".dvc":
            folders[:] = []  # its cache
        yield from (Path(parent) / name for name in names if name == "dvc.lock" or name.endswith(".dvc"))


def _records(locks: Iterable[str]) -> Iterator[str]:
    for text in locks:
        for entry in (parse_yaml(text) or {}).get("stages", {}).values():
            for out in entry.get("outs", []):
                if str(out.get("path", "")).startswith("runs/") and "md5" in out:
                    yield str(out["md5"])


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails, as where there is no such file in a commit."""
    done = subprocess.run(
        ["git", "--no-optional-locks", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None
