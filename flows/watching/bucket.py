"""A prefix of an object store, by fsspec: new objects are brought into the incoming folder, each once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from flows.watching.files import free_name
from prefloop.data.readers import container_of
from prefloop.errors import ConfigError, DataError

_CONTENT: Final = ("ETag", "etag", "md5Hash", "content_md5", "md5", "checksum")
_TIME: Final = ("LastModified", "last_modified", "updated", "mtime", "created")


class Bucket:
    """What lies under a URL such as s3://bucket/batches; objects are only read, never moved or removed.

    Raises:
        ConfigError: the URL's protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        protocol = url.partition("://")[0] if "://" in url else ""
        if not protocol:
            raise ConfigError(f"--bucket {url} is no URL", "for example: --bucket s3://my-bucket/batches")
        try:
            self._files, self._prefix = url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
            package = packages.get(protocol)
            raise ConfigError(
                f"--bucket {url}: {protocol}:// cannot be read here: {error}",
                f"pip install {package}" if package else "use a protocol that fsspec knows, such as s3://",
            ) from error
        self.url = url
        self._seen: dict[str, str] = {}

    def new(self, known: Mapping[str, str]) -> dict[str, str]:
        """Objects that are not as `known` has them, with what stands for their content now.

        Raises:
            OSError: the store does not answer. Other errors are the store's own.
        """
        before, self._seen = self._seen, self.look()
        return {
            name: version
            for name, version in self._seen.items()
            # Where no etag vouches for it, an object may be half written: it has to look the same twice.
            if known.get(name) != version and (version.startswith(_CONTENT) or before.get(name) == version)
        }

    def look(self) -> dict[str, str]:
        """Object, relative to the prefix -> etag, or size and time where the store has no etag."""
        self._files.invalidate_cache()
        found: dict[str, dict[str, Any]] = self._files.find(self._prefix, detail=True)
        names = {path[len(self._prefix) :].strip("/"): info for path, info in found.items()}
        return {name: _version(info) for name, info in names.items() if _is_data(name)}

    def fetch(self, name: str, folder: Path) -> Path:
        """Brings one object into a folder, whole or not at all; its first folder, the format, stays.

        Raises:
            DataError: its name leads out of the folder.
            OSError: the store does not answer. Other errors are the store's own.
        """
        parts = PurePosixPath(name).parts
        if any(part in ("..", ".", "") or part.startswith(".") or "\0" in part for part in parts):
            raise DataError(f"object {name!r} of {self.url} leads elsewhere", "rename the object")
        target = folder.joinpath(*parts[:1], "-".join(parts[1:])) if len(parts) > 1 else folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.part")
        self._files.get_file(f"{self._prefix.rstrip('/')}/{name}", str(draft))
        target = free_name(target)
        os.replace(draft, target)
        return target


def _version(info: dict[str, Any]) -> str:
    for key in _CONTENT:
        if info.get(key):
            return f"{key} {info[key]}"
    return " ".join(str(info.get(key, "")) for key in ("size", *_TIME))


def _is_data(name: str) -> bool:
    """True for names that say what a file is; stores hold marks and folders besides."""
    try:
        return bool(container_of(Path(name)))
    except DataError:
        return False
