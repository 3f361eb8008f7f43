"""The parts of a watch by themselves: waiting, hashing, formats, buckets, messages, batches handed over."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import psutil
import pytest

from flows.settings import child_environment
from flows.watching import files, standby
from flows.watching.bucket import Bucket
from flows.watching.debounce import Debounce
from flows.watching.files import Hashes, look
from flows.watching.formats import Recipe, guess, recipe_of
from flows.watching.incoming import Incoming, is_being_written
from flows.watching.memory import MEMORY, Memory
from flows.watching.options import Options
from flows.watching.sources import Sources
from flows.watching.voice import Voice
from prefloop.errors import ConfigError, DataError
from tasks.support.process import lifeline


def test_a_debounce_waits_for_quiet_but_not_for_ever() -> None:
    debounce = Debounce(quiet=2.0, most=8.0)
    assert debounce.due(100.0)
    debounce.notice(99.0, 100.0)  # it happened after 99 and was seen at 100
    assert not debounce.due(101.9)
    assert debounce.due(102.0)
    for now in (101.5, 103.0, 104.5, 106.0):
        debounce.notice(now - 1, now)
        assert not debounce.due(now + 0.5)
    assert debounce.due(107.0), "eight seconds after the first change, counted from the look before it"
    debounce.clear()
    assert debounce.due(106.0)


def test_a_file_is_read_again_only_when_its_signature_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda path: read.append(Path(path).name) or original(path))
    file = tmp_path / "a.txt"
    file.write_text("a")
    hashes = Hashes()
    first = hashes.of(file)
    # hashlib.sha256(b"a"), as sha256sum prints it
    assert first == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert hashes.of(file) == first
    assert Hashes(json.loads(json.dumps(hashes.as_values()))).of(file) == first
    assert read == ["a.txt"]
    os.utime(file, (1, 1))
    assert hashes.of(file) == first
    file.write_text("b")
    assert hashes.of(file) != first
    assert len(read) == 3


def test_hidden_and_unfinished_files_are_not_seen(tmp_path: Path) -> None:
    for name in (
        "a.jsonl",
        ".a.jsonl.x7",
        "b.jsonl.part",
        "c.jsonl.tmp",
        "d~",
        "taken/e.jsonl",
        "trl/f.jsonl",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert sorted(look(tmp_path, without=("taken",))) == ["a.jsonl", "trl/f.jsonl"]


def test_content_is_what_versions_hold_whatever_they_are_called(tmp_path: Path) -> None:
    folder = tmp_path / "data/sources"
    (folder / "001-trl").mkdir(parents=True)
    (folder / "001-trl/preferences.jsonl").write_text("rows")
    (folder / "README.md").write_text("not data")
    (folder / "001-trl.dvc").write_text("outs: []")

    def content() -> str:
        return Sources(tmp_path, Hashes()).content()

    before = content()
    (folder / "README.md").write_text("other words")
    (folder / "001-trl.dvc").write_text("outs: [] # again")
    (folder / "001-trl").rename(folder / "002-trl")
    assert content() == before
    (folder / "002-trl/preferences.jsonl").rename(folder / "002-trl/judge.jsonl")
    other_kind = content()
    assert other_kind != before
    (folder / "002-trl/judge.jsonl").write_text("Rows")
    assert content() not in (before, other_kind)


@pytest.mark.parametrize(
    ("name", "row", "format"),
    [
        ("a.jsonl", {"prompt": "p", "chosen": "a", "rejected": "b"}, "native"),
        ("a.json", [{"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}], "native"),
        ("a.jsonl", {"chosen": "\n\nHuman: hi\n\nAssistant: a", "rejected": "\n\nHuman: hi"}, "hh-rlhf"),
        ("a.jsonl", {"chosen": "same a", "rejected": "same b"}, "trl"),
        ("a.jsonl", {"prompt": [{"role": "user"}], "chosen": [], "rejected": []}, "trl"),
        ("a.jsonl", {"messages": [], "label": True}, "kto"),
        ("a.jsonl", {"messages": []}, "trl"),
        ("a.jsonl", {"text": "t"}, "native"),
        ("a.csv", "prompt,chosen", "table"),
        ("a.txt", "words", "text"),
    ],
)  # fmt: skip
def test_the_rows_of_a_loose_file_say_its_format(tmp_path: Path, name: str, row: object, format: str) -> None:
    (tmp_path / name).write_text(row if isinstance(row, str) else json.dumps(row) + "\n")
    assert guess(tmp_path / name) == format
    assert recipe_of(tmp_path, name, Recipe("trl", {"a": "b"})) == Recipe("trl", {"a": "b"})


def test_what_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"what": "ever"}\n')
    with pytest.raises(DataError, match="do not say which format") as caught:
        guess(tmp_path / "a.jsonl")
    assert "folder named after its format" in caught.value.remedy
    (tmp_path / "table").mkdir()
    (tmp_path / "table/options.json").write_text('{"prompt": 1}')
    with pytest.raises(DataError, match="no object of texts"):
        recipe_of(tmp_path, "table/a.csv", None)
    with pytest.raises(DataError, match="unknown format") as caught:
        recipe_of(tmp_path, "hh-rlfh/a.jsonl", None)
    assert "hh-rlhf" in caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="needs leases")
def test_a_file_that_somebody_has_open_to_write_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    assert not is_being_written(file)
    with open(file, "a"):
        assert is_being_written(file) or os.uname().sysname != "Linux"
    with open(file):
        assert not is_being_written(file)


def test_what_replaced_a_delivery_meanwhile_is_not_moved_as_if_it_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = '{"prompt": "%s", "chosen": "a", "rejected": "b"}\n'
    incoming = Incoming(tmp_path, tmp_path / "in", None, Voice(stream=io.StringIO()))
    file = tmp_path / "in/a.jsonl"
    file.write_text(row % "old")
    incoming.look(0.0)
    assert incoming.whole(0.5) == []
    assert incoming.whole(1.0) == ["a.jsonl"]

    def replace(root: Path, folders: list[Path]) -> None:  # between import and move
        file.write_text(row % "newer")

    monkeypatch.setattr("flows.watching.incoming.track", replace)
    assert incoming.take(["a.jsonl"]) == ["001-native"]
    assert file.read_text() == row % "newer"
    monkeypatch.setattr("flows.watching.incoming.track", lambda root, folders: None)
    incoming.look(2.0)
    assert incoming.take(incoming.whole(3.0)) == ["002-native"]
    assert not file.exists()


def test_a_bucket_brings_each_content_once(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "incoming"
    (store / "trl/2024").mkdir(parents=True)
    (store / "trl/2024/a.jsonl").write_text("a")
    (store / "_SUCCESS").write_text("")
    bucket = Bucket(f"file://{store}")
    assert bucket.new({}) == {}, "an object without etag has to look the same twice"
    new = bucket.new({})
    assert list(new) == ["trl/2024/a.jsonl"]
    assert bucket.fetch("trl/2024/a.jsonl", folder) == folder / "trl/2024-a.jsonl"
    assert (folder / "trl/2024-a.jsonl").read_text() == "a"
    assert bucket.new(new) == {}
    (store / "trl/2024/a.jsonl").write_text("changed")
    bucket.new(new)
    assert list(bucket.new(new)) == ["trl/2024/a.jsonl"]
    assert bucket.fetch("trl/2024/a.jsonl", folder) == folder / "trl/2-2024-a.jsonl"
    assert (folder / "trl/2024-a.jsonl").read_text() == "a", "what waits is not written over"
    assert (folder / "trl/2-2024-a.jsonl").read_text() == "changed"
    assert not list(folder.rglob(".*"))


def test_an_etag_vouches_for_an_object_at_first_sight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = Bucket(f"file://{tmp_path}")
    listing = {"/b/one.jsonl": {"ETag": '"123"', "size": 1, "LastModified": "now"}}
    monkeypatch.setattr(bucket, "_prefix", "/b")
    monkeypatch.setattr(bucket._files, "find", lambda prefix, detail: listing)
    known = bucket.new({})
    assert known == {"one.jsonl": 'ETag "123"'}
    listing["/b/one.jsonl"]["LastModified"] = "later"  # delivered again, equal content
    assert bucket.new(known) == {}


@pytest.mark.parametrize("name", ["../a.jsonl", "trl/../../a.jsonl", ".ssh/a.jsonl", "trl/.a.jsonl"])
def test_an_object_whose_name_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads elsewhere"):
        Bucket(f"file://{tmp_path}").fetch(name, tmp_path / "incoming")
    assert not (tmp_path / "incoming").exists()


def test_a_bucket_that_cannot_be_read_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere:// cannot be read here"):
        Bucket("nowhere://a/b")
    with pytest.raises(ConfigError, match="is no URL"):
        Bucket("my-bucket/batches")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError) as caught:
            Bucket("s3://bucket/batches")
        assert caught.value.remedy == "pip install s3fs"


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    stream = io.StringIO()
    voice = Voice(stream=stream)
    voice.say("taken", "\x1b[2Jnasty\r.jsonl: imported")
    voice.say_once("waiting", "for it")
    voice.say_once("waiting", "for it")
    voice.forget("waiting")
    voice.say_once("waiting", "for it")
    assert stream.getvalue() == "\\x1b[2Jnasty\\x0d.jsonl: imported\nfor it\nfor it\n"


def test_a_memory_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    Memory(data="abc", bucket={"a": "1"}).save(tmp_path)
    assert Memory.load(tmp_path) == Memory(data="abc", bucket={"a": "1"})
    (tmp_path / MEMORY).write_text("{")
    assert Memory.load(tmp_path) == Memory()


def test_a_plan_tells_only_of_runs_that_change_nothing_themselves() -> None:
    assert Options(arguments=("evaluate", "--jobs", "1")).planned
    assert not Options(arguments=("--set=ppo.kl_coef=0.1",)).planned
    assert not Options(arguments=("--on", "gpu")).planned


def test_a_batch_is_handed_over_whole_and_an_equal_one_is_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("prefect")
    from flows.watching.deployment import hand_over

    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    (name,) = hand_over(tmp_path, rows, [], "native")
    assert hand_over(tmp_path, rows, [], "native") == [name]
    folder = tmp_path / "data/incoming/native"
    assert [path.name for path in folder.iterdir()] == [name]
    assert [json.loads(line) for line in (folder / name).read_text().splitlines()] == rows
    (tmp_path / "data/incoming/taken/native").mkdir(parents=True)
    (folder / name).rename(tmp_path / "data/incoming/taken/native" / name)
    assert hand_over(tmp_path, rows, [], "native") == []
    with pytest.raises(DataError, match=r"gone\.jsonl is missing"):
        hand_over(tmp_path, [{"prompt": "q"}], ["gone.jsonl"], "native")
    with pytest.raises(DataError, match="unknown format"):
        hand_over(tmp_path, rows, [], "../../etc")
    assert list(folder.iterdir()) == []


def test_a_warm_process_is_kept_until_what_it_holds_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "worthwhile", lambda root: True)
    monkeypatch.setattr(standby, "MODULES", ())
    monkeypatch.setenv("HF_TOKEN", "a secret")
    with lifeline(tmp_path / "lifeline") as variables:
        kept = standby.Standby(tmp_path, variables)
        assert kept.variables() == {}
        try:
            kept.keep()
            (first,) = kept.variables().values()
            process = psutil.Process(kept._process.pid)
            assert "HF_TOKEN" not in process.environ()
            kept.keep()
            assert kept.variables() == {"PREFLOOP_WARM_ADDRESS": first}
            monkeypatch.setattr(standby, "_present", lambda: {"flows/warm_leader.py": 1})
            assert kept.variables() == {}, "a run starts cold rather than with older code"
            kept.keep()
            (second,) = kept.variables().values()
            assert second != first
            assert not process.is_running()
        finally:
            kept.end()
    assert kept.variables() == {}
    assert not Path(second).parent.exists()


def test_what_a_standby_holds_are_packages_and_files_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    held = standby._present()
    names = {Path(path).name for path in held}
    assert {"site-packages", "warm_leader.py", "credentials.py", "process.py"} <= names
    monkeypatch.setenv("PREFLOOP_WARM", "off")
    assert not standby.worthwhile(Path("."))


def test_the_path_of_children_of_children_is_that_of_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    once = child_environment()["PATH"]
    monkeypatch.setenv("PATH", once)
    assert child_environment()["PATH"] == once == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
