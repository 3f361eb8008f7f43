"""Checkpoints that workers share: the newest whole one is taken, and a copy that was cut short never is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.storage import Storage, StorageAway
from flows.workers.checkpoints import SharedCheckpoints, progress

KEY = "ab" * 32


class Machine:
    """One worker's scratch folder of the stage, and what was said there."""

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.scratch = folder / KEY
        self.said: list[str] = []
        self.shared = SharedCheckpoints(storage, self.scratch, self.said.append)

    def train(self, step: int, within: str = "checkpoints") -> None:
        folder = self.scratch / within / f"checkpoint-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(bytes([step]) * 1000)
        (folder / "checkpoint.json").write_text(json.dumps({"step": step}))
        with open(self.scratch / "curve.jsonl", "a") as curve:
            curve.write(f'{{"step": {step}}}\n')

    def steps(self) -> list[str]:
        return sorted(path.name for path in (self.scratch / "checkpoints").glob("checkpoint-*"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "shared"))


@pytest.fixture
def first(tmp_path: Path, storage: Storage) -> Machine:
    return Machine(tmp_path / "first", storage)


@pytest.fixture
def second(tmp_path: Path, storage: Storage) -> Machine:
    return Machine(tmp_path / "second", storage)


def copies(storage: Storage) -> list[str]:
    return sorted({name.split("/")[2] for name in storage.sizes(f"checkpoints/{KEY}")})


def test_another_machine_goes_on_from_the_newest_with_the_same_bytes(storage, first, second):
    for step in (1, 2):
        first.train(step)
        first.shared.share()
    second.shared.fetch()
    assert second.steps() == ["checkpoint-00000002"], "the newest alone: a resume reads no other"
    for name in ("checkpoints/checkpoint-00000002/state.pt", "curve.jsonl"):
        assert (second.scratch / name).read_bytes() == (first.scratch / name).read_bytes()
    assert any("took over a checkpoint" in line for line in second.said)


def test_two_are_kept_and_none_after_the_stage_has_ended_well(storage, first):
    for step in range(1, 5):
        first.train(step)
        first.shared.share()
        first.shared.share()
    assert [name[:8] for name in copies(storage)] == ["00000003", "00000004"]
    first.shared.remove()
    assert storage.sizes("checkpoints") == {}


def test_a_copy_without_its_manifest_and_one_cut_short_are_passed_over(storage, first, second, tmp_path):
    for step in (1, 2):
        first.train(step)
        first.shared.share()
    newest = tmp_path / "shared/checkpoints" / KEY / copies(storage)[-1]
    state = newest / "checkpoints/checkpoint-00000002/state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    half = newest.with_name("00000009-abcdef01") / "checkpoints/checkpoint-00000009"
    half.mkdir(parents=True)
    (half / "state.pt").write_bytes(b"half of it")
    second.shared.fetch()
    assert second.steps() == ["checkpoint-00000001"]
    assert any("state.pt was cut short or changed" in line for line in second.said)


def test_changed_bytes_of_the_same_length_are_passed_over(storage, first, second, tmp_path):
    first.train(1)
    first.shared.share()
    state = next((tmp_path / "shared/checkpoints").rglob("state.pt"))
    state.write_bytes(b"x" * 1000)
    second.shared.fetch()
    assert not second.scratch.exists()


def test_what_is_further_here_stays(storage, first, second):
    first.train(3)
    first.shared.share()
    second.train(4)
    second.shared.fetch()
    assert second.steps() == ["checkpoint-00000004"]
    first.train(5)
    first.shared.share()
    second.shared.fetch()
    assert second.steps() == ["checkpoint-00000005"]


def test_members_of_an_ensemble_come_one_after_the_other(first):
    first.train(9)
    one = progress(first.scratch)
    first.train(2, "checkpoints/member-9")
    two = progress(first.scratch)
    first.train(1, "checkpoints/member-10")
    assert () < one < two < progress(first.scratch)
    part = first.scratch / "checkpoints/member-10/checkpoint-00000001-000003"
    part.mkdir()
    assert progress(first.scratch) > two


def test_storage_that_is_away_stops_no_stage_and_gets_the_next_one(storage, first, monkeypatch):
    def away(*_: object) -> None:
        raise StorageAway("the store is down")

    put = Storage.put
    first.train(1)
    monkeypatch.setattr(Storage, "put", away)
    with first.shared.shared():
        pass
    assert any("was not shared, the next one will be: the store is down" in line for line in first.said)
    assert storage.sizes("checkpoints") == {}
    monkeypatch.setattr(Storage, "put", put)
    with first.shared.shared():
        first.train(2)
    assert len(copies(storage)) == 1


def test_a_manifest_that_leads_out_of_the_scratch_folder_writes_nothing(storage, first, second, tmp_path):
    first.train(1)
    first.shared.share()
    path = next((tmp_path / "shared/checkpoints").rglob("manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../stolen"] = next(iter(manifest["files"].values()))
    path.write_text(json.dumps(manifest))
    second.shared.fetch()
    assert not (tmp_path / "stolen").exists()
    assert not second.scratch.exists()
