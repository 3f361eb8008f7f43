"""`prefloop watch` on the real pipeline: which stages a changed row runs, how soon, and what runs none."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.conftest import OWN, Workspace

pytestmark = pytest.mark.slow

SECONDS = 10.0
"""From the change of a row to the beginning of the first stage, with the watch's own defaults, on a machine
that has nothing else to do."""


class Watch:
    """`prefloop watch` in a workspace, with no option but `--json`."""

    def __init__(self, workspace: Workspace) -> None:
        self.events: list[dict[str, Any]] = []
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", "watch", "--json"],
            cwd=workspace.root, env=workspace.environment(), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._readers = [threading.Thread(target=read) for read in (self._read, self._read_run)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _read_run(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output += line

    def said(self, event: str) -> int:
        return sum(one["event"] == event for one in self.events)

    def wait_for(self, *events: str, count: int = 1, seconds: float = 400) -> None:
        """Waits until these events together were said so often."""
        deadline = time.monotonic() + seconds
        while sum(map(self.said, events)) < count:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, f"{events}: {self.events}\n{self.output}"
            time.sleep(0.02)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        for reader in self._readers:
            reader.join(60)


@pytest.fixture(scope="module")
def copy(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The workspace that ran, to be changed."""
    root = tmp_path_factory.mktemp("watched") / "prefloop"
    subprocess.run(["cp", "-a", str(workspace.root), str(root)], check=True)
    return Workspace(root)


@pytest.fixture(scope="module")
def watch(copy: Workspace) -> Iterator[Watch]:
    """A watch that has seen that there is nothing to do."""
    made = Watch(copy)
    try:
        made.wait_for("up-to-date", "unchanged", "done")
        yield made
    finally:
        made.end()


def locked(workspace: Workspace) -> dict[str, Any]:
    return dict(yaml.safe_load((workspace.root / "dvc.lock").read_text())["stages"])


def inputs(entry: dict[str, Any]) -> dict[str, Any]:
    """Hash of each file, and value of each parameter, that a stage read."""
    files = {dep["path"]: dep["md5"] for dep in entry.get("deps", ())}
    return {**files, **entry.get("params", {})}


def own_file(workspace: Workspace) -> Path:
    """The user's comparisons, as they were imported."""
    (found,) = (workspace.root / "data/sources").glob("001-trl/preferences.jsonl")
    return found


def fitted(workspace: Workspace) -> set[str]:
    """Prompts, as their rows have them, whose comparisons the reward model was fitted to."""
    traced = [json.loads(line) for line in workspace.prefloop("trace", "reward", "--rows").splitlines()]
    ids = {row["id"] for row in traced if row["stage"] == "reward" and row["use"] == "fitted"}
    lines = (workspace.root / "data/validated/preferences.jsonl").read_text().splitlines()
    return {str(row["prompt"]) for row in map(json.loads, lines) if row["id"] in ids}


def begun(workspace: Workspace, stage: str, since: float, seconds: float = 120) -> float:
    """When a stage took its lock (seconds after `since`, monotonic)."""
    lock = workspace.root / f".prefloop/locks/{stage}.lock"
    while not (lock.exists() and lock.stat().st_size):
        assert time.monotonic() < since + seconds, f"{stage} did not begin"
        time.sleep(0.01)
    return time.monotonic() - since


def busyness() -> float:
    """How much longer than alone a process takes now: others may share the cores."""
    script = (
        "import time; begun, used = time.monotonic(), time.process_time(); import dvc.repo; "
        "print((time.monotonic() - begun) / (time.process_time() - used))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return max(1.0, float(done.stdout))


def test_equal_content_runs_nothing(copy: Workspace, watch: Watch) -> None:
    """Touched, written anew, replaced by an equal copy, delivered again."""
    file, before, runs = own_file(copy), locked(copy), watch.said("run")
    os.utime(file)
    watch.wait_for("unchanged", count=watch.said("unchanged") + 1)
    file.write_bytes(file.read_bytes())
    watch.wait_for("unchanged", count=watch.said("unchanged") + 1)
    shutil.copyfile(file, file.with_suffix(".part"))
    os.replace(file.with_suffix(".part"), file)
    watch.wait_for("unchanged", count=watch.said("unchanged") + 1)
    delivery = copy.root / "data/incoming/trl/again.jsonl"
    delivery.parent.mkdir(parents=True)
    delivery.write_text("".join(json.dumps(row) + "\n" for row in OWN))
    watch.wait_for("equal")
    assert watch.said("run") == runs
    assert locked(copy) == before


def test_a_changed_row_runs_the_stages_that_need_it_within_ten_seconds(copy: Workspace, watch: Watch) -> None:
    file, before, weights, runs = own_file(copy), locked(copy), copy.weights(), watch.said("done")
    rows = file.read_text().splitlines(keepends=True)
    number, row = next(
        (n, row) for n, row in enumerate(map(json.loads, rows)) if str(row["prompt"]) in fitted(copy)
    )
    chosen = row["chosen"]
    changed = "It is, by far." if isinstance(chosen, str) else [{**chosen[0], "content": "It is, by far."}]
    rows[number] = json.dumps({**row, "chosen": changed}) + "\n"
    busy, said = busyness(), len(watch.output)
    since = time.monotonic()
    file.write_text("".join(rows))
    took = begun(copy, "ingest", since)
    watch.wait_for("done", count=runs + 1)
    busy = max(busy, busyness())
    print(f"the first stage began after {took:.1f} s, with {busy:.1f} times as much to do as this alone")
    assert watch.said("failed") == 0, watch.output

    ran = {line.split()[0] for line in watch.output[said:].splitlines() if " ran in " in line}
    after = locked(copy)
    need = {stage for stage in after if inputs(after[stage]) != inputs(before[stage])}
    assert ran == need
    assert ran == {
        "ingest", "validate@preferences", "validate-leaks",
        "reward", "ppo@ppo", "dpo@dpo",
        "evaluate@base", "evaluate@sft", "evaluate@ppo", "evaluate@dpo", "looks", "report",
    }  # fmt: skip
    now = copy.weights()
    assert {name.split("/")[1] for name in now if now[name] != weights[name]} == {"reward", "ppo", "dpo"}
    assert took < SECONDS * busy
