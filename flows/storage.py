"""Files in a folder, or under a URL of an object store, that several machines share: each whole or absent."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefloop.errors import ConfigError, InfrastructureError, WorkspaceError
from prefloop.files import atomic_file
from tasks.support.redact import redact

_READ_ONLY = ("http", "https", "local", "file", "memory")


class StorageAway(InfrastructureError):
    """The folder or store does not answer now; later it may."""


def checked_place(place: str, what: str) -> str:
    """An absolute folder, or a URL that DVC and fsspec can write to, without a slash at its end.

    Args:
        place: folder or URL. what: where it was named, for errors.

    Raises:
        ConfigError: the URL's protocol is unknown, its package is not installed, or it holds a password.
    """
    if "://" not in place:
        return str(Path(place).expanduser().absolute())
    parts = urlsplit(place)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{what} is a URL with keys or arguments in it: {redact('url', place)}",
            "name bucket and prefix alone, such as s3://bucket/prefloop; keys come from the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or from the provider's own files",
        )
    _need_package(place, parts.scheme, what)
    if ".." in parts.path.split("/") or not parts.netloc:
        raise ConfigError(f"{what}={place} names no bucket and prefix", "for example s3://bucket/prefloop")
    return place.rstrip("/")


def _need_package(place: str, protocol: str, what: str) -> None:
    from dvc_objects.fs import known_implementations
    from fsspec import available_protocols

    known = known_implementations.get(protocol)
    if known is None or protocol in _READ_ONLY or protocol not in available_protocols():
        raise ConfigError(
            f"{what}={place}: {protocol}:// is nothing that workers can exchange through",
            "name a folder that every machine reaches, or a bucket: s3://bucket/prefloop",
        )
    module = known["class"].partition(".")[0]
    if importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        install = "prefloop[s3]" if protocol == "s3" else package
        raise ConfigError(
            f"{what}={place} needs the package {package}, which is not installed",
            f"pip install --constraint constraints.txt '{install}'",
        )


@contextmanager
def answering(place: str) -> Iterator[None]:
    """Turns what a store's own library raises into an error that names the store.

    Raises:
        StorageAway: whatever the block raised, but for errors of prefloop's own and FileNotFoundError.
    """
    try:
        yield
    except (InfrastructureError, WorkspaceError, ConfigError, FileNotFoundError):
        raise
    except Exception as error:
        said = redact("error", str(error) or type(error).__name__)
        raise StorageAway(
            f"{place} does not do what was asked of it: {said[:500]}",
            "see that it is up, that this machine reaches it, and that the keys in the environment may read "
            "and write there; then run again: what was done is kept",
        ) from error


class Storage:
    """Reads and writes under one place. Names are relative to it, with slashes.

    Attributes:
        place: as `checked_place` gave it.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self._is_folder = "://" not in place

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        options: dict[str, Any] = {} if self._is_folder else {"use_listings_cache": False}
        files, root = url_to_fs(self.place, **options)
        return files, str(root).rstrip("/")

    def put(self, source: Path, name: str) -> None:
        """Writes a file's content under a name, whole or not at all.

        Raises:
            StorageAway: it could not be written.
        """
        files, root = self._open()
        with self._writing():
            if not self._is_folder:
                files.put_file(str(source), f"{root}/{name}")
                return
            with open(source, "rb") as content, atomic_file(Path(root) / name, "wb") as handle:
                shutil.copyfileobj(content, handle)

    def write(self, name: str, content: bytes) -> None:
        """The same for a content in memory."""
        files, root = self._open()
        with self._writing():
            if not self._is_folder:
                files.pipe_file(f"{root}/{name}", content)
                return
            with atomic_file(Path(root) / name, "wb") as handle:
                handle.write(content)

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            StorageAway: it could not be read.
        """
        files, root = self._open()
        with answering(self.place):
            return bytes(files.cat_file(f"{root}/{name}"))

    def fetch(self, name: str, target: Path) -> None:
        """Brings a file here. Errors are those of `read`; a file cut short may lie at `target` then."""
        files, root = self._open()
        target.parent.mkdir(parents=True, exist_ok=True)
        with answering(self.place):
            files.get_file(f"{root}/{name}", str(target))

    def read_all(self, names: Collection[str]) -> dict[str, bytes]:
        """Contents of many files at once; those that are not there are left out.

        Raises:
            StorageAway: one could not be read.
        """
        files, root = self._open()
        with answering(self.place):
            found = files.cat([f"{root}/{name}" for name in names], on_error="return") if names else {}
            for content in found.values():
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        contents = {path: content for path, content in found.items() if isinstance(content, bytes)}
        return {path[len(root) + 1 :]: content for path, content in contents.items()}

    def sizes(self, folder: str) -> dict[str, int]:
        """Name -> size (bytes) of every file below a folder; empty where there is none.

        Raises:
            StorageAway: it could not be listed.
        """
        return {name: size for name, (size, _) in self.listing(folder).items()}

    def listing(self, folder: str) -> dict[str, tuple[int, float]]:
        """Name -> size (bytes), and when it was written (seconds since the epoch; now, where the store does
        not tell), of every file below a folder; empty where there is none.

        Raises:
            StorageAway: it could not be listed.
        """
        files, root = self._open()
        with answering(self.place), suppress(FileNotFoundError):
            found = files.find(f"{root}/{folder}", detail=True)
            return {
                path[len(root) + 1 :]: (int(info["size"]), _written(info)) for path, info in found.items()
            }
        return {}

    def remove_all(self, names: Collection[str]) -> None:
        """Removes files; those that are gone already are passed over.

        Raises:
            StorageAway: one could not be removed.
        """
        files, root = self._open()
        with answering(self.place):
            if not self._is_folder:
                files.rm([f"{root}/{name}" for name in names])
                return
            for name in names:
                (Path(root) / name).unlink(missing_ok=True)

    def remove(self, folder: str) -> None:
        """Removes all that lies below a folder, if there is anything.

        Raises:
            StorageAway: it could not be removed.
        """
        files, root = self._open()
        with answering(self.place), suppress(FileNotFoundError):
            files.rm(f"{root}/{folder}", recursive=True)

    def _open(self) -> tuple[Any, str]:
        with answering(self.place):
            return self._opened

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with answering(self.place):
            try:
                yield
            except FileNotFoundError as error:
                raise ConfigError(
                    f"{self.place}: there is no such bucket", "make the bucket first"
                ) from error


def _written(info: Mapping[str, Any]) -> float:
    """When a file was written or, in a folder, came there (seconds since the epoch), as its store says it."""
    if "created" in info and "mtime" in info:
        return max(float(info["mtime"]), float(info["created"]))
    for name in ("LastModified", "last_modified", "updated", "mtime"):
        when = info.get(name)
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, datetime):
            return when.timestamp()
        if isinstance(when, int | float):
            return float(when)
    return time.time()
