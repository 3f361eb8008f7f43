"""Coordinator and workers exchange through a bucket: what is written is whole, what is away is said, and no
key is written down."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.planning.planner import open_repo
from flows.storage import Storage, StorageAway
from flows.workers.checkpoints import SharedCheckpoints
from flows.workers.code import fetch_code, publish_code
from flows.workers.data import push
from flows.workers.exchange import open_exchange
from prefloop.errors import ConfigError
from tests.flows.conftest import finished as finished
from tests.flows.conftest import finished_template as finished_template
from tests.flows.conftest import project_template as project_template
from tests.servers.bucket_server import BucketServer

pytestmark = [pytest.mark.slow, pytest.mark.servers]

_count = itertools.count()


@pytest.fixture
def remote(storage: BucketServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket's URL, which this process and its children exchange through."""
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: extra `s3`")
    bucket = storage.make(f"work-{next(_count)}")
    variables = {**storage.client_variables(), "PREFLOOP_REMOTE": f"s3://{bucket}/prefloop"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield variables["PREFLOOP_REMOTE"]
    if not storage.running():
        storage.start()


def test_files_go_and_come_and_a_cut_upload_never_appears(
    remote: str, storage: BucketServer, tmp_path: Path
) -> None:
    place = Storage(remote)
    large = bytes(range(256)) * 250_000  # several parts
    (tmp_path / "large").write_bytes(large)
    place.put(tmp_path / "large", "a/large")
    place.write("a/small", b"{}")
    assert place.sizes("a") == {"a/large": len(large), "a/small": 2}
    place.fetch("a/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large
    place.remove("a")
    assert storage.keys(_bucket(remote)) == []
    with pytest.raises(ConfigError, match="there is no such bucket"):
        Storage("s3://not-there/prefloop").write("a", b"")


def test_a_model_travels_through_the_bucket_and_comes_home_by_dvc_pull(
    remote: str, storage: BucketServer, finished, tmp_path: Path
) -> None:
    exchange = open_exchange(finished.root)
    repo = open_repo(finished.root)
    push(repo, [out for out in repo.index.outs if out.use_cache])
    config = (finished.root / ".dvc/config.local").read_text()
    assert f"url = {remote}/data" in config
    assert storage.secret not in config
    assert storage.key not in config
    weights = (finished.root / "models/ppo/weights").read_bytes()
    shutil.rmtree(finished.root / "models")
    shutil.rmtree(finished.root / ".dvc/cache")
    assert finished.plan()["ppo"]["action"] == "skip"
    assert not any(verb == "GET" and not key.endswith(".dir") for verb, key in _objects(storage))
    finished.dvc("pull", "models/ppo")
    assert (finished.root / "models/ppo/weights").read_bytes() == weights
    commit = publish_code(finished.root, exchange.storage)
    fetch_code(tmp_path / "clone", exchange.storage, commit)
    assert (tmp_path / "clone/params.yaml").read_text() == (finished.root / "params.yaml").read_text()


def test_a_storage_that_is_down_is_named_and_nothing_runs_in_its_place(
    remote: str, storage: BucketServer, finished, tmp_path: Path
) -> None:
    open_exchange(finished.root)
    repo = open_repo(finished.root)
    push(repo, [out for out in repo.index.outs if out.use_cache])
    shutil.rmtree(finished.root / "models")
    shutil.rmtree(finished.root / ".dvc/cache")
    storage.kill()
    output = finished.prefloop("run", code=7)
    assert f"{remote}/data does not do what was asked of it" in output
    assert "then run again: what was done is kept" in output
    assert storage.secret not in output
    with pytest.raises(StorageAway):
        Storage(remote).write("a", b"")
    said: list[str] = []
    scratch = tmp_path / ("ab" * 32)
    (scratch / "checkpoints/checkpoint-00000001").mkdir(parents=True)
    (scratch / "checkpoints/checkpoint-00000001/state.pt").write_bytes(b"state")
    with SharedCheckpoints(Storage(remote), scratch, said.append).shared():
        pass
    assert "was not shared, the next one will be" in said[0]
    storage.start()
    assert "nothing changed" in finished.prefloop("run")
    assert finished.stages_ran() == set()


def test_an_object_that_was_cut_short_in_the_bucket_enters_no_cache(
    remote: str, storage: BucketServer, finished
) -> None:
    open_exchange(finished.root)
    repo = open_repo(finished.root)
    out = next(out for out in repo.index.outs if str(out) == "models/ppo")
    (weights,) = (str(entry.value) for _, _, entry in out.get_dir_cache())
    push(repo, [out])
    key = f"prefloop/data/files/md5/{weights[:2]}/{weights[2:]}"
    storage.client().put_object(Bucket=_bucket(remote), Key=key, Body=b"cut")
    shutil.rmtree(finished.root / "models")
    shutil.rmtree(finished.root / ".dvc/cache")
    output = finished.prefloop("chat", "ppo", code=6)
    assert "models/ppo" in output
    assert not (finished.root / "models/ppo").exists()


def test_a_key_that_may_not_read_is_said(remote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-word")
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageAway, match="the keys in the environment may read") as refused:
        Storage(remote).read("a")
    assert "not-the-secret-word" not in str(refused.value)
    S3FileSystem.clear_instance_cache()


def _bucket(remote: str) -> str:
    return remote.split("/")[2]


def _objects(storage: BucketServer) -> list[tuple[str, str]]:
    """Requests for objects of the DVC remote."""
    return [(verb, key) for verb, key in storage.requests() if "/data/files/" in key]
