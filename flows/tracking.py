"""Imported versions as DVC tracks them: a pointer `NNN-format.dvc` beside each folder of data/sources/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prefloop.data.importing import SOURCES, version_names
from prefloop.errors import WorkspaceError


def pointer_of(folder: Path) -> Path:
    """Where DVC keeps what it knows of a version."""
    return folder.with_name(f"{folder.name}.dvc")


def untracked(root: Path) -> list[Path]:
    """Folders of versions without a pointer: an import was cut off before DVC saw them."""
    folders = [root / SOURCES / name for name in version_names(root)]
    return [folder for folder in folders if folder.is_dir() and not pointer_of(folder).exists()]


def track(root: Path, folders: Sequence[Path]) -> None:
    """`dvc add` of folders, in this process, which is quicker than a command; waits for DVC's lock.

    Raises:
        WorkspaceError: DVC cannot; importing again tries again.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root), _wait_for_lock=True)
        repo.scm_context.quiet = True
        with repo:
            repo.add([str(folder) for folder in folders])
    except (DvcException, OSError) as error:
        names = " ".join(map(str, folders))
        raise WorkspaceError(
            f"{names} was imported, but DVC cannot track it: {error}",
            f"mend that (prefloop doctor helps), then import again or run: dvc add {names}",
        ) from error
