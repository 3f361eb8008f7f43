"""The incoming folder: where people and programs drop files that are to become versions of data/sources/.

A file is taken once it is whole, imported from a copy that nobody else writes, and moved to taken/, or to
refused/ with the reason. What was imported is known by the manifests of the versions, so a watch that is
killed between two of these steps does the rest next time, and nothing twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from flows.settings import STATE
from flows.tracking import track, untracked
from flows.watching.files import Looks, Signature, free_name, look, signature
from flows.watching.formats import Key, Recipe, is_options, recipe_of
from flows.watching.voice import Voice
from prefloop.data.importing import import_files, versions
from prefloop.errors import ConfigError, DataError, PrefloopError, WorkspaceError
from prefloop.files import atomic_file, read_json, sha256_file

INCOMING: Final = Path("data/incoming")
TAKEN: Final = "taken"
REFUSED: Final = "refused"
SETTLED_SECONDS: Final = 1.0
"""How long a file has to stand unchanged before it counts as whole."""

Known = dict[Key, str]
"""Content and how it was read -> the version that holds it."""


class Incoming:
    """The deliveries of a workspace.

    Args:
        folder: where files are dropped; made when it is missing.
        default: how loose files are imported; by their rows where None.
    """

    def __init__(self, root: Path, folder: Path, default: Recipe | None, voice: Voice) -> None:
        self._root = root
        self._folder = folder
        self._default = default
        self._voice = voice
        self._seen: dict[str, tuple[Signature, float]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def look(self, now: float) -> bool:
        """Looks at the folder; True when something in it is not as it was at the last look."""
        found = {n: s for n, s in look(self._folder, without=(TAKEN, REFUSED)).items() if not is_options(n)}
        before = {name: state for name, (state, _) in self._seen.items()}
        self._seen = {
            name: self._seen[name] if before.get(name) == state else (state, now)
            for name, state in found.items()
        }
        return found != before

    def waiting(self) -> Looks:
        """Deliveries, whole or not."""
        return {name: state for name, (state, _) in self._seen.items()}

    def whole(self, now: float) -> list[str]:
        """Deliveries that stood unchanged long enough and that nobody has open to write, by name."""
        return sorted(
            name
            for name, (_, since) in self._seen.items()
            if now - since >= SETTLED_SECONDS and not is_being_written(self._folder / name)
        )

    def new(self, names: list[str]) -> list[str]:
        """Those of the deliveries whose content was not imported before, as far as one can tell unread."""
        known = known_contents(self._root)
        found = []
        for name in names:
            path = self._folder / name
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    key = recipe_of(self._folder, name, self._default).key(sha256_file(path))
                    found += [name] if key not in known else []
            except (PrefloopError, OSError):
                continue  # it will be refused: no reason to end a run
        return found

    def take(self, names: list[str]) -> list[str]:
        """Imports deliveries and moves them away; call it while no run reads data/sources/.

        Returns:
            Names of the versions that were made.

        Raises:
            WorkspaceError: the disk is full, or DVC cannot track a version; what is left is taken next time.
        """
        scratch = self._root / STATE / "incoming"
        made: list[str] = []
        moves: list[tuple[str, Signature, str]] = []
        for name in names:
            try:
                state, _ = self._seen[name]
                copy = self._copy(name, state, scratch)
                if copy is not None:
                    version, created = self._import(name, copy)
                    made += [version] if created else []
                    moves.append((name, state, version))
            except (DataError, ConfigError) as error:
                self._refuse(name, str(error))
            except WorkspaceError:
                raise
            except Exception as error:  # whatever a file does to a reader, it must not end the watch
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise WorkspaceError(f"{name} cannot be taken: {error}", "free disk space") from error
                self._refuse(name, f"{type(error).__name__}: {error}")
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        if missing := untracked(self._root):
            track(self._root, missing)
        for name, state, version in moves:
            if signature(self._folder / name) == state:  # else it is another delivery by now
                self._move(name, TAKEN)
            if version in made:
                self._voice.say("taken", f"{name}: imported as {version}", file=name, version=version)
            else:
                self._voice.say(
                    "equal", f"{name} has the content of {version}: nothing to do", file=name, version=version
                )
        return made

    def _import(self, name: str, copy: Path) -> tuple[str, bool]:
        recipe = recipe_of(self._folder, name, self._default)
        known = known_contents(self._root).get(recipe.key(sha256_file(copy)))
        if known is not None:
            return known, False
        version = import_files(recipe.format, [copy], recipe.options, self._root)
        return version.name, version.created

    def _copy(self, name: str, state: Signature, scratch: Path) -> Path | None:
        """A copy that nobody writes; None when the delivery changed since it was seen, or went away.

        Raises:
            DataError: it is no plain file.
        """
        source, copy = self._folder / name, scratch / Path(name).name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        if not os.path.lexists(source):
            return None
        if not stat.S_ISREG(source.lstat().st_mode):
            raise DataError(f"{name} is no plain file but a link or a device", "deliver the file itself")
        shutil.copyfile(source, copy, follow_symlinks=False)
        return copy if signature(source) == state else None

    def _refuse(self, name: str, reason: str) -> None:
        target = self._move(name, REFUSED)
        with atomic_file(target.with_name(f"{target.name}.reason")) as handle:
            handle.write(reason + "\n")
        self._voice.say(
            "refused", f"{name} cannot be imported, see {target}.reason: {reason}", file=name, reason=reason
        )

    def _move(self, name: str, where: str) -> Path:
        """Moves a delivery below `where`, under a name that is free; an identical file there is enough."""
        source, target = self._folder / name, self._folder / where / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if _identical(source, target):
            source.unlink()
        else:
            target = free_name(target)
            source.rename(target)
        self._seen.pop(name, None)
        return target


def known_contents(root: Path) -> Known:
    """What every version was made of."""
    known: Known = {}
    for version in versions(root):
        manifest = read_json(version.folder / "manifest.json")
        recipe = Recipe(str(manifest["format"]), dict(manifest["options"]))
        for file in manifest["files"]:
            for known_as in (recipe, replace(recipe, guessed=True)):
                known.setdefault(known_as.key(str(file["sha256"])), version.name)
    return known


def is_being_written(path: Path) -> bool:
    """True when a process has the file open for writing, where the system tells: Linux, a file of our own."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)  # not granted while there is a writer
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def _identical(one: Path, other: Path) -> bool:
    if one.is_symlink() or other.is_symlink() or not (one.is_file() and other.is_file()):
        return False
    return one.stat().st_size == other.stat().st_size and sha256_file(one) == sha256_file(other)
