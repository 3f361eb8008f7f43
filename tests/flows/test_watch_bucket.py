"""The bucket of a watch, on S3-compatible storage: each object once, by its etag."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")

from flows.watching.bucket import Bucket
from flows.watching.bucket_feed import BucketFeed
from flows.watching.memory import MEMORY, Memory
from flows.watching.voice import Voice
from tests.servers.bucket_server import BucketServer
from tests.servers.conftest import storage as storage

pytestmark = pytest.mark.slow


def rows(*named: str) -> bytes:
    """A batch of comparisons, as JSON Lines."""
    each = [{"prompt": name, "chosen": "yes", "rejected": "no"} for name in named]
    return "".join(json.dumps(row) + "\n" for row in each).encode()


class Drop:
    """A bucket of a test's own in the storage."""

    def __init__(self, storage: BucketServer, name: str) -> None:
        self.name, self._client = name, storage.client()
        self._client.create_bucket(Bucket=name)  # the server would not see a folder that appears behind it
        self.url = f"s3://{name}/batches"

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self.name, Key=key, Body=content)


@pytest.fixture
def drop(storage: BucketServer, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Drop:
    for name, value in storage.client_variables().items():
        monkeypatch.setenv(name, value)
    if not storage.running():
        storage.start()
    return Drop(storage, f"drop-{abs(hash(request.node.name)) % 10**9}")


def feed(drop: Drop, folder: Path) -> BucketFeed:
    """As a watch has it, which looks as often as it is asked."""
    voice = Voice(stream=(folder / "said").open("a"))
    return BucketFeed(Bucket(drop.url), folder, Path("incoming"), 0.0, Memory.load(folder), voice)


def brought(folder: Path) -> dict[str, bytes]:
    files = (path for path in (folder / "incoming").rglob("*") if path.is_file())
    return {path.relative_to(folder / "incoming").as_posix(): path.read_bytes() for path in files}


def test_new_objects_are_brought_in_once_whatever_their_names(drop: Drop, tmp_path: Path) -> None:
    (tmp_path / MEMORY).parent.mkdir()
    watching = feed(drop, tmp_path)
    watching.look(1.0)
    assert brought(tmp_path) == {}, "an empty prefix"
    drop.put("batches/trl/2024/a b+c.jsonl", rows("p"))
    drop.put("batches/loose ü.jsonl", rows("q"))
    drop.put("batches/.hidden/x.jsonl", rows("of nobody"))
    drop.put("batches/trl/picture.png", b"PNG")
    drop.put("batches-of-others/trl/a.jsonl", rows("of others"))
    drop.put("elsewhere.jsonl", rows("of others"))
    watching.look(2.0)
    expected = {"trl/2024-a b+c.jsonl": rows("p"), "loose ü.jsonl": rows("q")}
    assert brought(tmp_path) == expected
    assert (tmp_path / "said").read_text().count("leads elsewhere") == 1
    feed(drop, tmp_path).look(3.0)  # a new process
    drop.put("batches/loose ü.jsonl", rows("q"))  # again, the same bytes
    watching.look(4.0)
    feed(drop, tmp_path).look(5.0)
    assert brought(tmp_path) == expected
    drop.put("batches/loose ü.jsonl", rows("changed"))
    watching.look(6.0)
    assert brought(tmp_path) == {**expected, "2-loose ü.jsonl": rows("changed")}
    assert (tmp_path / "said").read_text().count("leads elsewhere") == 1


def test_wrong_keys_are_told(drop: Drop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MEMORY).parent.mkdir()
    drop.put("batches/a.jsonl", rows("p"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another secret word")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    feed(drop, tmp_path).look(1.0)
    assert "cannot be read, tried again" in (tmp_path / "said").read_text()
    assert brought(tmp_path) == {}
    s3fs.S3FileSystem.clear_instance_cache()
