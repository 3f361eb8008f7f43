"""Housekeeping of what coordinator and workers exchange: what a branch or a registered model needs stays."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from flows.keeping.collect import Sweep, at_rest
from flows.keeping.model import Category
from flows.storage import Storage
from flows.workers.exchange import dvc, open_exchange
from prefloop.errors import WorkspaceError
from tests.flows.kept import Kept, gc, going
from tests.flows.test_gc_runs import history as history
from tests.flows.test_gc_runs import kept as kept
from tests.flows.test_gc_runs import store as store
from tests.servers.bucket_server import BucketServer
from tests.servers.conftest import storage as storage

MONTH = 31 * 86400.0


def exchanged(workspace: Kept) -> Storage:
    """Everything of the workspace's cache in the exchange, and nothing in the cache: as workers leave it."""
    exchange = open_exchange(workspace.root)
    dvc(workspace.root, "push", "--run-cache", "--all-commits", "--remote", "prefloop-workers")
    for path in workspace.objects():
        if "runs" not in path.relative_to(workspace.root / ".dvc/cache").parts:
            name = "".join(path.parts[-2:])
            exchange.storage.put(path, f"data/files/md5/{name[:2]}/{name[2:]}")
    for name in ("code/c0.pack", "results/1.json", "checkpoints/0ld/1-a/manifest.json", "spool/1/r.jsonl"):
        exchange.storage.write(name, b"{}")
    shutil.rmtree(workspace.root / ".dvc/cache")
    return exchange.storage


def names(storage: Storage) -> set[str]:
    return set(storage.sizes(""))


def test_what_no_branch_or_registered_model_needs_goes_and_everything_else_is_restored(history):
    left = exchanged(history)
    before = names(left)
    assert going(gc(only="exchange", older_than="30d")["exchange"], "object") == set()
    found = gc(only="exchange")["exchange"]
    # sft-4-4 alone: rows with their folder, two records, weights with their folder, metrics.
    assert len(going(found, "object")) == 7
    assert len(going(found, "run-cache entry")) == 2
    assert [len(going(found, kind)) for kind in ("code", "result", "checkpoint")] == [1, 1, 1]
    assert names(left) == before, "a look removes nothing"

    gc(only="exchange", yes=True)
    assert len(before - names(left)) == 7 + 2 + 3
    assert "spool/1/r.jsonl" in names(left), "what MLflow was not told waits"
    assert gc(only="exchange")["exchange"]["bytes"] == 0
    for value in (1, 2, 3, 6):
        history.values(value, value)
        assert history.run(pull=True) == []
        assert history.weights() == f"rows of {value}\nsft of {value}\n"
    history.values(4, 4)
    assert history.run(pull=True) == ["ingest-4", "sft-4-4"]


def test_checkpoints_go_once_it_is_known_who_would_go_on_from_them(history):
    left = exchanged(history)
    dvc(history.root, "pull")
    history.values(2, 1)  # the rows that sft reads will be others
    assert going(gc(only="exchange")["exchange"], "checkpoint") == set()
    history.values(1, 1)
    assert going(gc(only="exchange")["exchange"], "checkpoint") == {"checkpoints/0ld/1-a/manifest.json"}
    gc(only="exchange", yes=True)
    assert left.sizes("checkpoints") == {}


def test_an_exchange_that_others_may_use_is_left_alone_until_told(history, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFLOOP_REMOTE", str(tmp_path / "shared"))
    left = exchanged(history)
    before = names(left)
    assert "PREFLOOP_REMOTE names what other" in gc(only="exchange", yes=True)["exchange"]["blocked"]
    assert names(left) == before
    found = gc(only="exchange", shared_cache=True)["exchange"]
    assert len(going(found, "object")) == 7


def test_what_comes_while_it_collects_stays(history):
    left = exchanged(history)
    with at_rest(history.root):
        sweep = Sweep(history.root, (Category.EXCHANGE,), 0.0)
        left.write("data/files/md5/00/new", b"of a worker that is quicker")
        left.write("data/runs/ab/abc/new", b"outs: []")
        left.write("results/new.json", b"{}")
        sweep.remove()
    assert {"data/files/md5/00/new", "data/runs/ab/abc/new", "results/new.json"} <= names(left)


def test_a_damaged_listing_stops_it_before_anything_goes(history):
    left = exchanged(history)
    before = names(left)
    folder = next(iter(re.findall(r"[0-9a-f]{32}\.dir", Path("dvc.lock").read_text())))
    left.write(f"data/files/md5/{folder[:2]}/{folder[2:]}", b"[")
    with pytest.raises(WorkspaceError, match="listing of a folder is damaged"):
        gc(only="exchange", yes=True)
    assert names(left) == before


def test_when_a_file_came_counts_not_when_it_was_made(tmp_path):
    made = tmp_path / "made"
    made.write_text("{}")
    os.utime(made, (time.time() - MONTH, time.time() - MONTH))
    place = Storage(str(tmp_path / "place"))
    place.put(made, "a/b")
    (tmp_path / "place/a").mkdir(exist_ok=True)
    shutil.copy2(made, tmp_path / "place/a/c")
    found = place.listing("a")
    assert {name: size for name, (size, _) in found.items()} == {"a/b": 2, "a/c": 2}
    assert all(abs(when - time.time()) < 60 for _, when in found.values())


@pytest.mark.servers
def test_the_same_in_a_bucket(history, storage: BucketServer, monkeypatch):
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: extra `s3`")
    for name, value in storage.client_variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFLOOP_REMOTE", f"s3://{storage.make('kept')}/prefloop")
    left = exchanged(history)
    before = names(left)
    assert len(before) > 30
    gc(only="exchange", yes=True, shared_cache=True)
    assert len(before - names(left)) == 7 + 2 + 3
    history.values(3, 3)
    assert history.run(pull=True) == []
    assert json.loads(Path("runs/sft.json").read_text())["key"] == "sft-3-3"
