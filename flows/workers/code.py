"""The code of a stage on its way to a worker: the working tree as a git commit, packed into one file."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flows.storage import Storage
from flows.workers.exchange import run
from prefloop.errors import WorkspaceError


def publish_code(root: Path, storage: Storage) -> str:
    """Puts the working tree, uncommitted edits included, where workers find it; returns the commit.

    Neither the index nor any branch of the workspace is touched. The pack holds this commit alone, not its
    history.
    """
    commit = _commit_tree(root)
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "code.pack"
        objects = git(root, "rev-list", "--objects", "--no-walk", commit)
        with open(pack, "wb") as handle:
            run(root, ["git", "pack-objects", "--quiet", "--stdout"], text=objects, output=handle.fileno())
        storage.put(pack, _name(commit))
    return commit


def fetch_code(clone: Path, storage: Storage, commit: str) -> None:
    """Brings a worker's clone to a published commit; what DVC tracks and the clone's state stay.

    Raises:
        WorkspaceError: the commit is not there, or damaged.
    """
    if not (clone / ".git").exists():
        clone.mkdir(parents=True, exist_ok=True)
        git(clone, "init", "--quiet")
    bring_commit(clone, storage, commit)
    git(clone, "checkout", "--quiet", "--force", "--detach", commit)
    git(clone, "clean", "--quiet", "-fd")


def bring_commit(clone: Path, storage: Storage, commit: str) -> None:
    """Adds a published commit to a clone's objects, unless it is there.

    Raises:
        WorkspaceError: the commit is not there, or damaged.
    """
    if has_commit(clone, commit):
        return
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "code.pack"
        try:
            storage.fetch(_name(commit), pack)
        except FileNotFoundError as error:
            raise WorkspaceError(
                f"{storage.place} has no commit {commit}", "run again: each run publishes its code anew"
            ) from error
        try:
            with open(pack, "rb") as handle:
                run(clone, ["git", "index-pack", "--stdin"], source=handle.fileno())
            parent = _parent(clone, commit)
        except WorkspaceError as error:
            raise WorkspaceError(
                f"commit {commit} in {storage.place} is damaged: {error.message}",
                "run again: each run publishes its code anew",
            ) from error
    if parent and not has_commit(clone, parent):
        # As a clone of depth one has it: git looks for nothing before this commit.
        shallow = clone / ".git" / "shallow"
        known = set(shallow.read_text(encoding="ascii").split()) if shallow.exists() else set()
        shallow.write_text("".join(f"{name}\n" for name in sorted({*known, commit})), encoding="ascii")


def has_commit(folder: Path, commit: str) -> bool:
    """True when git has the commit there."""
    command = ["git", "-C", str(folder), "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def git(folder: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> str:
    """Runs a git command to its end and returns what it printed.

    Raises:
        WorkspaceError: it failed; what it said is in the message.
    """
    return run(folder, ["git", *arguments], extra)


def _commit_tree(root: Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", "HEAD", extra=index)
        git(root, "add", "--all", ".", extra=index)
        tree = git(root, "write-tree", extra=index).strip()
    author = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in {
            "NAME": "prefloop",
            "EMAIL": "prefloop@localhost",
            "DATE": "2000-01-01T00:00:00Z",
        }.items()
    }
    return git(root, "commit-tree", tree, "-p", "HEAD", "-m", "a workspace", extra=author).strip()


def _name(commit: str) -> str:
    return f"code/{commit}.pack"


def _parent(clone: Path, commit: str) -> str:
    """The commit's parent as its own text names it, whether git has that or not; "" without one."""
    text = git(clone, "cat-file", "commit", commit)
    found = [line.split()[1] for line in text.split("\n\n", 1)[0].splitlines() if line.startswith("parent ")]
    return found[0] if found else ""
