"""What coordinator and workers exchange through: a folder here, a bucket in tests/servers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from flows.storage import Storage, StorageAway, answering, checked_place
from prefloop.errors import ConfigError


def test_what_is_written_is_read_listed_and_removed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "shared"))
    (tmp_path / "file").write_bytes(b"seven")
    storage.put(tmp_path / "file", "a/b/file")
    storage.write("a/c", b"{}")
    assert storage.sizes("a") == {"a/b/file": 5, "a/c": 2}
    assert storage.read("a/c") == b"{}"
    storage.fetch("a/b/file", tmp_path / "deep/copy")
    assert (tmp_path / "deep/copy").read_bytes() == b"seven"
    storage.remove("a/b")
    storage.remove("a/b")
    assert storage.sizes("a") == {"a/c": 2}
    assert storage.sizes("not there") == {}
    with pytest.raises(FileNotFoundError):
        storage.read("a/b/file")


def test_a_file_that_cannot_be_written_whole_does_not_appear(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    storage = Storage(str(tmp_path / "shared"))
    (tmp_path / "file").write_bytes(b"seven")
    storage.write("old", b"before")
    monkeypatch.setattr("flows.storage.shutil.copyfileobj", full)
    with pytest.raises(Exception, match="No space left"):
        storage.put(tmp_path / "file", "old")
    assert storage.sizes("") == {"old": 6}
    assert storage.read("old") == b"before"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("s3://key:secret-word@bucket/x", "keys or arguments in it"),
        ("s3://bucket/x?token=secret-word", "keys or arguments in it"),
        ("https://host/x", "nothing that workers can exchange through"),
        ("nonsense://bucket/x", "nothing that workers can exchange through"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/../other", "names no bucket"),
    ],
)
def test_a_place_that_cannot_be_used_is_refused_without_its_secrets(
    place: str, words: str, monkeypatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=words) as refused:
        checked_place(place, "PREFLOOP_REMOTE")
    assert "secret-word" not in str(refused.value)


def test_a_missing_extra_is_named(monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "dvc_s3" else found(name))
    with pytest.raises(ConfigError, match=r"needs the package dvc-s3(.|\n)*'prefloop\[s3\]'"):
        checked_place("s3://bucket/prefloop", "PREFLOOP_REMOTE")


def test_a_place_is_an_absolute_folder_or_a_url(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.chdir(tmp_path)
    assert checked_place("shared", "it") == str(tmp_path / "shared")
    assert checked_place("s3://bucket/prefloop/", "it") == "s3://bucket/prefloop"


def test_what_a_store_says_is_passed_on_without_secrets(monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "AWS_SECRET_ACCESS_KEY", "the-secret-word")
    words = r"s3://b does not do what was asked of it: no \[hidden\]"
    with pytest.raises(StorageAway, match=words), answering("s3://b"):
        raise RuntimeError("no the-secret-word")
