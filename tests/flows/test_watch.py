"""`prefloop watch` as a process of its own: what it takes, when it runs, and what it never does twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.watching_live import Live, deliver, environment, make_workspace, prompts, runs
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., Live]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("watched") / "workspace")


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", str(template), str(tmp_path / "workspace")], check=True)
    return tmp_path / "workspace"


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    started: list[Live] = []

    def begin(**options: Any) -> Live:
        started.append(Live(root, **options))
        return started[-1]

    yield begin
    for live in started:
        live.end(signal.SIGKILL)


def at_rest(live: Live) -> Live:
    """The watch after the run that a fresh workspace needs."""
    live.wait_for("done")
    return live


def test_a_delivery_becomes_a_version_and_one_run_and_equal_content_nothing(root: Path, start: Start) -> None:
    live = at_rest(start())
    deliver(root, "batch.jsonl", "p", "q")
    live.wait_for("done", 2)
    assert live.said("taken")[0]["version"] == "001-native"
    assert (root / "data/sources/001-native.dvc").exists()
    assert (root / "data/incoming/taken/batch.jsonl").exists()
    assert not (root / "data/incoming/batch.jsonl").exists()
    assert runs(root)[2:] == ["began 001-native", "ended 001-native"]

    deliver(root, "batch.jsonl", "p", "q")  # again
    live.wait_for("equal", 1)
    deliver(root, "another-name.jsonl", "p", "q")
    live.wait_for("equal", 2)
    os.utime(root / "data/sources/001-native/preferences.jsonl")
    live.wait_for("unchanged", 1)
    (root / "data/sources/rows.txt").rename(root / "data/sources/renamed.txt")
    live.wait_for("unchanged", 2)
    (root / "data/sources/001-native.dvc").unlink()
    subprocess.run(
        [sys.executable, "-m", "dvc", "add", "-q", "data/sources/001-native"],
        cwd=root, env=environment(), check=True,
    )  # fmt: skip
    live.wait_for("unchanged", 3)
    assert len(runs(root)) == 4
    assert prompts(root) == ["p", "q"]
    assert sorted(path.name for path in (root / "data/incoming/taken").iterdir()) == [
        "another-name.jsonl", "batch.jsonl",
    ]  # fmt: skip
    assert live.end() == 143
    again = start(once=True)  # a new process knows all of it
    assert again.wait() == 0
    assert again.said("unchanged")
    assert len(runs(root)) == 4


def test_a_changed_row_runs_and_its_return_runs_again(root: Path, start: Start) -> None:
    live = at_rest(start())
    rows = root / "data/sources/rows.txt"
    rows.write_text("two\n")
    live.wait_for("done", 2)
    rows.write_text("one\n")
    live.wait_for("done", 3)
    assert len(runs(root)) == 6


def test_a_half_written_file_waits_until_it_is_whole(root: Path, start: Start) -> None:
    live = at_rest(start())
    path = root / "data/incoming/slow.jsonl"
    row = json.dumps({"prompt": "p", "chosen": "yes", "rejected": "no"})
    with open(path, "w") as handle:
        handle.write(row + "\n" + row[:9])
        handle.flush()
        time.sleep(3)  # three times what an unchanged file is given
        assert not live.said("taken"), "a file was taken that its writer still had open"
        handle.write(row[9:].replace('"p"', '"q"') + "\n")
    live.wait_for("taken")
    assert prompts(root) == ["p", "q"]
    # A writer that closes between two parts, and goes on before the file has stood for a second.
    slow = root / "data/incoming/slower.jsonl"
    for number in range(8):
        with open(slow, "a") as handle:
            handle.write(row.replace('"p"', f'"{number}"') + "\n")
        time.sleep(0.3)
    live.wait_for("taken", 2)
    live.wait_for("done", 3)
    assert prompts(root) == sorted([*map(str, range(8)), "p", "q"])
    assert len(list((root / "data/sources").glob("0*-native"))) == 2


def test_a_burst_of_twenty_files_is_one_run(root: Path, start: Start) -> None:
    live = at_rest(start(quiet=2.0))
    for number in range(20):
        deliver(root, f"{number}.jsonl", f"p{number}")
        time.sleep(0.04)
    live.wait_for("done", 2)
    time.sleep(1.5)
    assert len(live.said("taken")) == 20
    assert len(live.said("run")) == 2
    assert sorted(prompts(root)) == sorted(f"p{number}" for number in range(20))
    assert not list((root / "data/incoming").glob("*.jsonl"))


def test_changes_that_never_rest_start_a_run_all_the_same(root: Path, start: Start) -> None:
    live = at_rest(start(quiet=2.0, most=3.0))
    began = time.monotonic()
    number = 0
    while len(live.said("run")) < 2:
        number += 1
        assert time.monotonic() - began < 30
        deliver(root, f"{number}.jsonl", f"p{number}")
        time.sleep(0.3)
    assert live.said("taken")


def test_what_arrives_during_a_run_is_one_more_run_with_all_of_it(root: Path, start: Start) -> None:
    live = at_rest(start())
    (root / "hold").touch()
    deliver(root, "first.jsonl", "first")
    live.wait_for("run", 2)
    for number in range(5):
        deliver(root, f"{number}.jsonl", f"p{number}")
        time.sleep(0.3)
    time.sleep(1.5)
    assert len(live.said("run")) == 2
    assert len(live.said("taken")) == 1, "data/sources was changed while a run read it"
    (root / "hold").unlink()
    live.wait_for("done", 3)
    time.sleep(1.5)
    everything = " ".join(f"00{number}-native" for number in range(1, 7))
    assert runs(root)[2:] == [
        "began 001-native", "ended 001-native", f"began {everything}", f"ended {everything}",
    ]  # fmt: skip


def test_newer_data_supersedes_a_run_and_equal_data_does_not(root: Path, start: Start) -> None:
    live = at_rest(start(supersede=True))
    (root / "hold").touch()
    deliver(root, "first.jsonl", "first")
    live.wait_for("run", 2)
    deliver(root, "same.jsonl", "first")
    time.sleep(3)
    assert not live.said("supersede")
    deliver(root, "second.jsonl", "second")
    live.wait_for("supersede")
    live.wait_for("run", 3)
    (root / "hold").unlink()
    live.wait_for("done", 2)
    assert runs(root)[2:] == [
        "began 001-native", "asked 001-native", "began 001-native 002-native", "ended 001-native 002-native",
    ]  # fmt: skip
    assert not live.said("failed")


def test_what_cannot_be_imported_is_put_aside_with_its_reason(root: Path, start: Start) -> None:
    live = at_rest(start())
    incoming = root / "data/incoming"
    (incoming / "broken.jsonl").write_text("no json at all\n")
    (incoming / "picture.png").write_bytes(b"\x89PNG")
    (incoming / "empty.jsonl").touch()
    (incoming / "nowhere-format").mkdir()
    deliver(root, "nowhere-format/a.jsonl", "x")
    (incoming / "link.jsonl").symlink_to("/etc/passwd")
    deliver(root, "good.jsonl", "good")
    live.wait_for("done", 2)
    live.wait_for("refused", 5)
    refused = incoming / "refused"
    assert "broken.jsonl: its first rows do not say" in (refused / "broken.jsonl.reason").read_text()
    assert "the name does not say what the file is" in (refused / "picture.png.reason").read_text()
    assert "is empty" in (refused / "empty.jsonl.reason").read_text()
    assert "unknown format" in (refused / "nowhere-format/a.jsonl.reason").read_text()
    assert "no plain file" in (refused / "link.jsonl.reason").read_text()
    assert (refused / "broken.jsonl").read_text() == "no json at all\n"
    assert prompts(root) == ["good"]
    (incoming / "broken.jsonl").write_text("another file of the same name\n")
    live.wait_for("refused", 6)
    assert (refused / "2-broken.jsonl").exists()
    assert (refused / "2-broken.jsonl.reason").exists()


def test_a_folder_names_the_format_and_holds_its_options(root: Path, start: Start) -> None:
    folder = root / "data/incoming/table"
    folder.mkdir(parents=True)
    (folder / "options.json").write_text('{"prompt": "question", "chosen": "better", "rejected": "worse"}')
    (folder / "ratings.csv").write_text("question,better,worse\nwhat?,this,that\n")
    live = start(once=True)
    assert live.wait() == 0
    assert live.said("taken")[0]["version"] == "001-table"
    assert prompts(root) == ["what?"]
    assert (folder / "options.json").exists()


@pytest.mark.parametrize("place", ["track", "move", "decide"])
def test_a_watch_killed_after_an_import_loses_nothing_and_takes_nothing_twice(
    root: Path, start: Start, place: str
) -> None:
    deliver(root, "batch.jsonl", "p")
    killed = start(die_at=place)
    assert killed.wait() == -signal.SIGKILL
    assert prompts(root) == ["p"], "killed before the import: nothing is tested"
    assert runs(root) == []
    live = start(once=True)
    assert live.wait() == 0, live.errors
    assert prompts(root) == ["p"]
    assert (root / "data/sources/001-native.dvc").exists()
    assert (root / "data/incoming/taken/batch.jsonl").exists()
    assert runs(root) == ["began 001-native", "ended 001-native"]


def test_a_killed_watch_takes_its_run_with_it_and_the_next_one_runs_again(root: Path, start: Start) -> None:
    (root / "hold").touch()
    first = start()
    pid = first.wait_for("run")[0]["pid"]
    wait_until(lambda: runs(root))
    first.end(signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    (root / "hold").unlink()
    assert start(once=True).wait() == 0
    assert [line.split()[0] for line in runs(root)] == ["began", "asked", "began", "ended"]


def test_a_second_watch_in_a_workspace_is_refused(root: Path, start: Start) -> None:
    first = at_rest(start())
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "watch", "--once"],
        cwd=root, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 6
    assert f"in the hands of another process (pid {first.process.pid})" in done.stderr
    deliver(root, "batch.jsonl", "p")
    first.wait_for("done", 2)


def test_a_failed_run_waits_for_other_data_or_parameters(root: Path, start: Start) -> None:
    (root / "exit_code").write_text("5")
    live = start()
    assert live.wait_for("failed")[0]["exit_code"] == 5
    os.utime(root / "data/sources/rows.txt")
    live.wait_for("failed-before")
    assert len(live.said("run")) == 1
    live.end()
    again = start(once=True)
    assert again.wait() == 5
    assert not again.said("run")
    live = start()
    live.wait_for("failed-before")
    (root / "params.yaml").write_text("seed: 1\n")
    live.wait_for("failed")
    (root / "exit_code").unlink()
    deliver(root, "batch.jsonl", "p")
    live.wait_for("done")
    assert [line.split()[0] for line in runs(root)] == ["began", "ended"] * 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_then_the_watch(root: Path, start: Start, number: int, code: int) -> None:
    (root / "hold").touch()
    live = start()
    live.wait_for("run")
    wait_until(lambda: runs(root))
    assert live.end(number) == code
    assert [line.split()[0] for line in runs(root)] == ["began", "asked"]
    assert not live.said("failed")
    (root / "hold").unlink()
    assert start(once=True).wait() == 0
    assert runs(root)[-1].startswith("ended")


def test_a_run_of_somebody_else_is_waited_for(root: Path, start: Start) -> None:
    (root / "hold").touch()
    other = subprocess.Popen([sys.executable, "stand_in.py"], cwd=root, env=environment())
    wait_until(lambda: runs(root))
    deliver(root, "batch.jsonl", "p")
    live = start()
    assert live.wait_for("waiting")[0]["pid"] == other.pid
    time.sleep(1.5)
    assert len(live.said("waiting")) == 1
    assert not live.said("taken")
    (root / "hold").unlink()
    live.wait_for("done")
    assert other.wait(30) == 0
    assert runs(root)[2:] == ["began 001-native", "ended 001-native"]


def test_data_that_a_pointer_names_is_brought_here(root: Path, start: Start) -> None:
    deliver(root, "batch.jsonl", "p")
    assert start(once=True).wait() == 0
    shutil.rmtree(root / "data/sources/001-native")  # as after a git pull: the pointer alone
    deliver(root, "more.jsonl", "q")
    live = start(once=True)
    assert live.wait() == 0, live.events
    assert live.said("pulled")[0]["pointer"] == "001-native.dvc"
    assert prompts(root) == ["p", "q"]
    assert runs(root)[2:] == ["began 001-native 002-native", "ended 001-native 002-native"]


def test_a_pointer_whose_data_nobody_has_is_told_and_deliveries_stay(root: Path, start: Start) -> None:
    deliver(root, "batch.jsonl", "p")
    assert start(once=True).wait() == 0
    shutil.rmtree(root / "data/sources/001-native")
    shutil.rmtree(root / ".dvc/cache")
    deliver(root, "more.jsonl", "q")
    live = start(once=True)
    assert live.wait() == 6
    assert "dvc" in live.said("trouble")[0]["text"]
    assert (root / "data/incoming/more.jsonl").exists()
    assert len(runs(root)) == 2


def test_data_that_changed_while_a_stage_read_it_is_read_again(root: Path, start: Start) -> None:
    # DVC hashes what a stage read after the stage ended, and takes the newer data for what was read.
    (root / "hold").touch()
    live = start(command=[sys.executable, "-m", "dvc", "repro", "-q"])
    live.wait_for("run")
    wait_until(lambda: (root / "reading").exists())
    (root / "data/sources/rows.txt").write_text("one\ntwo\n")
    time.sleep(1)
    (root / "hold").unlink()
    wait_until(lambda: (root / "count.txt").exists() and (root / "count.txt").read_text() == "2\n")
    live.wait_for("done", 2)
    assert (root / "rows.txt").read_text() == "one\ntwo\n"
