"""Checkpoints of stages that train on workers, shared through the exchange: a stage that was lost with its
machine goes on elsewhere.

    checkpoints/STAGE-KEY/NUMBER-NAME/...           copy of the stage's scratch folder
    checkpoints/STAGE-KEY/NUMBER-NAME/manifest.json every file's size and hash; written last

A copy without its manifest is none, and one whose files are not what the manifest says is passed over.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from flows.storage import Storage
from prefloop.errors import PrefloopError
from prefloop.files import atomic_folder, sha256_file

FOLDER = "checkpoints"
KEPT = 2
POLL_SECONDS = 1.0
_MANIFEST = "manifest.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+(-\d+)?")
Progress = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Copy:
    """One copy in the exchange.

    Attributes:
        folder: below the exchange.
        number: copies of a key are numbered as they are made.
        whole: its manifest is there.
    """

    folder: str
    number: int
    whole: bool


class SharedCheckpoints:
    """The copies of one stage key.

    Args:
        storage: the exchange.
        scratch: the stage's scratch folder on this machine, which its key names.
        say: receives what a person should know.
    """

    def __init__(self, storage: Storage, scratch: Path, say: Callable[[str], None]) -> None:
        self._storage, self._scratch, self._say = storage, scratch, say
        self._place = f"{FOLDER}/{scratch.name}"
        self._shared: Progress = ()

    def fetch(self) -> None:
        """Takes the newest whole copy, where it is ahead of what lies here."""
        for copy in reversed(self._copies()):
            if not copy.whole:
                continue
            try:
                manifest = self._manifest(copy)
                there = _progress_of(str(manifest["newest"]))
                if there > progress(self._scratch):
                    self._take(copy, manifest)
                    self._say(f"took over a checkpoint that another worker left: {manifest['newest']}")
            except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                self._say(f"a shared checkpoint is not whole, an earlier one is looked for ({error})")
                continue
            self._shared = there
            return

    def share(self) -> None:
        """Copies the newest checkpoint, if it was not copied before, and removes all but the newest two.

        Raises:
            StorageAway: the exchange does not answer. OSError: the stage removed a file meanwhile.
        """
        now = progress(self._scratch)
        if now <= self._shared:
            return
        copies = self._copies()
        number = max((copy.number for copy in copies), default=0) + 1
        folder = f"{self._place}/{number:08d}-{secrets.token_hex(4)}"
        try:
            self._write(folder)
        except BaseException:
            with suppress(PrefloopError):
                self._storage.remove(folder)
            raise
        self._shared = now
        whole = [copy for copy in copies if copy.whole]
        for copy in whole[: max(0, len(whole) - KEPT + 1)]:
            self._storage.remove(copy.folder)

    def remove(self) -> None:
        """Removes them all: the stage has ended well."""
        self._storage.remove(self._place)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Copies checkpoints as they appear, for the length of the block, and the last one after it.

        Sharing never stops a stage: where the exchange does not answer, the next checkpoint tries again.
        """
        ended = threading.Event()

        def attempt() -> None:
            try:
                self.share()
            except (PrefloopError, OSError) as error:
                self._say(f"the checkpoint was not shared, the next one will be: {error}")

        def watch() -> None:
            while not ended.wait(POLL_SECONDS):
                attempt()

        watcher = threading.Thread(target=watch, name="checkpoints", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            attempt()

    def _copies(self) -> list[_Copy]:
        """Oldest first."""
        names: dict[str, set[str]] = {}
        for name in self._storage.sizes(self._place):
            folder, _, rest = name.removeprefix(f"{self._place}/").partition("/")
            names.setdefault(folder, set()).add(rest)
        return sorted(
            (
                _Copy(f"{self._place}/{folder}", int(folder.partition("-")[0]), _MANIFEST in files)
                for folder, files in names.items()
                if re.fullmatch(r"\d{8}-[0-9a-f]+", folder)
            ),
            key=lambda copy: (copy.number, copy.folder),
        )

    def _manifest(self, copy: _Copy) -> dict[str, Any]:
        return dict(json.loads(self._storage.read(f"{copy.folder}/{_MANIFEST}")))

    def _write(self, folder: str) -> None:
        listed: dict[str, dict[str, Any]] = {}
        newest = ""
        for name in _newest_only(self._scratch):
            path = self._scratch / name
            checkpoint = PurePosixPath(name).parent.as_posix()
            if _CHECKPOINT.fullmatch(PurePosixPath(checkpoint).name):
                newest = max(newest, checkpoint, key=_progress_of)
                listed[name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
                self._storage.put(path, f"{folder}/{name}")
            else:  # a curve grows as training goes on: what is hashed has to be what is copied
                content = path.read_bytes()
                listed[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                self._storage.write(f"{folder}/{name}", content)
        text = json.dumps({"newest": newest, "files": listed}, indent=2, sort_keys=True)
        self._storage.write(f"{folder}/{_MANIFEST}", text.encode("utf-8"))

    def _take(self, copy: _Copy, manifest: dict[str, Any]) -> None:
        """Puts a copy in the scratch folder's place, whole or not at all."""
        with atomic_folder(self._scratch) as draft:
            for name, about in manifest["files"].items():
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                    raise ValueError(f"{name} leads out of the scratch folder")
                target = draft / name
                self._storage.fetch(f"{copy.folder}/{name}", target)
                if target.stat().st_size != about["size"] or sha256_file(target) != about["sha256"]:
                    raise ValueError(f"{name} was cut short or changed")


def progress(scratch: Path) -> Progress:
    """How far the checkpoints of a scratch folder are: greater is further; () without any."""
    names = (path.relative_to(scratch).as_posix() for path in _folders(scratch))
    return max(map(_progress_of, names), default=())


def _progress_of(name: str) -> Progress:
    """Of one checkpoint, by its path: what lies deeper was made later (further members of an ensemble), and
    numbers count as such: member-10 comes after member-9."""
    parts = PurePosixPath(name).parts
    return ((len(parts),), *(tuple(int(number) for number in re.findall(r"\d+", part)) for part in parts))


def _newest_only(scratch: Path) -> list[str]:
    """Files of a scratch folder, the newest checkpoint alone of those that stand side by side, drafts left
    out."""
    newest: dict[Path, Path] = {}
    for folder in _folders(scratch):
        other = newest.get(folder.parent)
        if other is None or _progress_of(other.name) < _progress_of(folder.name):
            newest[folder.parent] = folder
    kept = set(newest.values())
    found = []
    for path in sorted(scratch.rglob("*")):
        parts = path.relative_to(scratch).parts
        within = [above for above in path.parents if _CHECKPOINT.fullmatch(above.name)]
        if path.is_file() and not any(part.startswith(".") for part in parts) and kept.issuperset(within):
            found.append("/".join(parts))
    return found


def _folders(scratch: Path) -> list[Path]:
    """Folders of finished checkpoints; drafts begin with a dot."""
    if not scratch.is_dir():
        return []
    return [path for path in scratch.rglob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name)]
