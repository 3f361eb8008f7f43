"""Contents by the hash that DVC has of them: in its cache, in a remote that is a folder, or where they lie.

Whatever is handed out was hashed again first: a byte that changed on the disk is found out here.
"""

from __future__ import annotations

import configparser
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefloop.errors import DataError
from prefloop.files import read_json

FOLDER = ".dir"
"""What the hash of a folder ends in: its object lists the files in it, each with a hash of its own."""


class Objects:
    """The contents that a workspace can reach without a network.

    Args:
        root: the workspace.

    Attributes:
        damaged: files met so far in the cache or a remote whose bytes are not those of their name.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        config = _config(root)
        self.cache = _below(root / ".dvc", config.get("cache", "dir", fallback="cache").strip("'\""))
        remotes = [
            config[section]["url"]
            for section in config.sections()
            if section.strip("'").startswith("remote ") and "url" in config[section]
        ]
        local = [_below(root / ".dvc", url) for url in remotes if "://" not in url]
        self._stores = [self.cache, *(folder for folder in local if folder.is_dir())]
        self._sound: dict[str, Path | None] = {}
        self.damaged: dict[Path, str] = {}

    def find(self, digest: str, path: str = "") -> Path | None:
        """A file with these contents; None where there is none.

        Args:
            digest: of a file, or of a folder's listing.
            path: where the workspace had it, which may still be so.

        Raises:
            DataError: what should be it has other bytes, and nothing else has these.
        """
        if digest in self._sound and (self._sound[digest] or not path):
            return self._sound[digest]
        wrong = []
        for candidate in self._candidates(digest, path):
            if md5(candidate) == digest.removesuffix(FOLDER):
                self._sound[digest] = candidate
                return candidate
            if candidate != self._root / path:  # a file of the workspace may well be another version by now
                wrong.append(candidate)
                self.damaged[candidate] = path
        if wrong:
            raise DataError(
                f"{wrong[0]} was changed: its bytes are not those of its name"
                + (f" (it was {path})" if path else ""),
                f"delete it, then fetch it again: dvc fetch, or restore {path or 'the file'} from a backup",
            )
        self._sound[digest] = None
        return None

    def files(self, digest: str, path: str) -> dict[str, str]:
        """Relative path -> hash of the files in a folder (of a single file: "" -> its own).

        Raises:
            DataError: the listing is nowhere, or was changed.
        """
        if not digest.endswith(FOLDER):
            return {"": digest}
        listing = self.find(digest)
        if listing is None:
            raise DataError(
                f"the listing of {path} ({digest}) is not in DVC's cache", f"fetch it: dvc fetch {path}"
            )
        return {entry["relpath"]: entry["md5"] for entry in read_json(listing)}

    def json(self, digest: str, path: str) -> Any:
        """A JSON file's value; None where the file is nowhere."""
        file = self.find(digest, path)
        return None if file is None else read_json(file)

    def _candidates(self, digest: str, path: str) -> Iterator[Path]:
        found = [store / "files" / "md5" / digest[:2] / digest[2:] for store in self._stores]
        if path and not digest.endswith(FOLDER):
            found.append(self._root / path)
        yield from (file for file in found if file.is_file())


def md5(path: Path) -> str:
    """Hex MD5 of a file's bytes, which is how DVC names it."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _config(root: Path) -> configparser.ConfigParser:
    """DVC's configuration of the workspace; that of the machine or the user names no cache of ours."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read([root / ".dvc" / "config", root / ".dvc" / "config.local"], encoding="utf-8")
    return parser


def _below(folder: Path, path: str) -> Path:
    return folder / Path(path).expanduser()
