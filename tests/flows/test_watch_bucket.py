"""The bucket of a watch, on S3-compatible storage: each object once, by its etag."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install s3fs")

from flows.watching.bucket import Bucket
from flows.watching.bucket_feed import BucketFeed
from flows.watching.memory import MEMORY, Memory
from flows.watching.voice import Voice
from tests.flows.watching_live import Live, make_workspace, prompts, runs
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


@pytest.mark.servers
def test_a_large_object_in_parts_and_more_objects_than_a_page(
    drop: Drop, storage: BucketServer, tmp_path: Path
) -> None:
    (tmp_path / MEMORY).parent.mkdir()
    large = rows(*(f"{number:07d}" for number in range(250_000)))
    assert len(large) > 12 * 2**20
    (tmp_path / "large.jsonl").write_bytes(large)
    from boto3.s3.transfer import TransferConfig

    parts = TransferConfig(multipart_threshold=5 * 2**20, multipart_chunksize=5 * 2**20)
    client = storage.client()
    client.upload_file(str(tmp_path / "large.jsonl"), drop.name, "batches/trl/large.jsonl", Config=parts)
    many = [f"batches/native/{number:04d}.jsonl" for number in range(1005)]
    for key in many:
        client.put_object(Bucket=drop.name, Key=key, Body=rows(key))
    seen = Bucket(drop.url).look()
    assert len(seen) == 1006, "a listing has pages of a thousand"
    assert all(version.startswith("ETag ") for version in seen.values())
    for key in many:
        client.delete_object(Bucket=drop.name, Key=key)
    watching = feed(drop, tmp_path)
    watching.look(1.0)
    assert brought(tmp_path) == {"trl/large.jsonl": large}
    watching.look(2.0)
    assert len(brought(tmp_path)) == 1


@pytest.mark.servers
def test_a_store_that_is_away_is_told_once_and_nothing_is_lost(
    drop: Drop, storage: BucketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MEMORY).parent.mkdir()
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    drop.put("batches/a.jsonl", rows("p"))
    watching = feed(drop, tmp_path)
    watching.look(1.0)
    storage.kill()
    for now in (2.0, 3.0):
        watching.look(now)
    assert (tmp_path / "said").read_text().count("cannot be read, tried again") == 1
    storage.start()
    drop.put("batches/b.jsonl", rows("q"))
    watching.look(4.0)
    assert brought(tmp_path) == {"a.jsonl": rows("p"), "b.jsonl": rows("q")}
    assert not list((tmp_path / "incoming").rglob(".*"))


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


@pytest.mark.servers
def test_a_live_watch_runs_on_a_new_object_and_not_on_an_equal_one(drop: Drop, tmp_path: Path) -> None:
    root = make_workspace(tmp_path / "workspace")
    options: dict[str, Any] = {"bucket": drop.url, "bucket_interval": 0.3}
    live = Live(root, **options)
    try:
        live.wait_for("done")
        drop.put("batches/trl/a.jsonl", rows("p"))
        live.wait_for("done", 2)
        drop.put("batches/trl/b.jsonl", rows("p"))  # another object, the same rows
        live.wait_for("equal")
        drop.put("batches/trl/a.jsonl", rows("p", "q"))
        live.wait_for("done", 3)
        assert prompts(root) == ["p", "p", "q"]
        assert [event["object"] for event in live.said("fetched")] == [
            "trl/a.jsonl",
            "trl/b.jsonl",
            "trl/a.jsonl",
        ]
        assert len(runs(root)) == 6
    finally:
        live.end(signal.SIGKILL)
