"""A small workspace and a watch in a process of its own, whose run is a stand-in that records itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]

STAND_IN = '''
"""In the place of `prefloop run`: holds the workspace, notes which versions it found, and how it ended."""
import os, signal, sys, time
from pathlib import Path
from tasks.support.locks import held
from tasks.support.process import watch_parent

def note(word):
    found = sorted(path.name for path in Path("data/sources").glob("*-*") if path.is_dir())
    with open("runs.log", "a") as log:
        log.write(f"{word} {' '.join(found)}\\n")

def asked(number, _frame):
    note("asked")
    os._exit(128 + number)

signal.signal(signal.SIGINT, asked)
signal.signal(signal.SIGTERM, asked)
with held(".prefloop/locks/workspace.lock", "the workspace"):
    watch_parent(lambda: asked(signal.SIGTERM, None), death_signal=False)
    note("began")
    until = time.monotonic() + 60
    while Path("hold").exists() and time.monotonic() < until:
        time.sleep(0.02)
    note("ended")
    sys.exit(int(Path("exit_code").read_text()) if Path("exit_code").exists() else 0)
'''

DRIVER = """
import json, os, signal, sys
from pathlib import Path
from flows.watching import incoming, options, runs, voice, watch

def die(*_arguments, **_names):
    os.kill(os.getpid(), signal.SIGKILL)

wanted = json.loads(sys.argv[1])
match wanted.pop("die_at", ""):
    case "track":
        incoming.track = die
    case "move":
        incoming.Incoming._move = die
    case "decide":
        runs.Runs.decide = die
command = tuple(wanted.pop("command", (sys.executable, "stand_in.py")))
chosen = options.Options(**{"interval": 0.1, "quiet": 1.2, "command": command, **wanted})
sys.exit(watch.watch(Path("."), chosen, voice.Voice(as_json=True)))
"""

DVC_YAML = """
stages:
  ingest:
    cmd: python ingest.py
    deps: [data/sources]
    outs: [rows.txt]
  count:
    cmd: python -c "print(len(open('rows.txt').read().split()), file=open('count.txt', 'w'))"
    deps: [rows.txt]
    outs: [count.txt]
"""

INGEST = """
import time
from pathlib import Path
files = [p for p in sorted(Path("data/sources").rglob("*")) if p.suffix in (".txt", ".jsonl")]
found = "".join(p.read_text() for p in files)
Path("reading").touch()
while Path("hold").exists():
    time.sleep(0.02)
Path("rows.txt").write_text(found)
"""


def environment() -> dict[str, str]:
    foreign = ("PREFECT", "DVC", "PREFLOOP")
    cleaned = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {
        **cleaned,
        "PYTHONPATH": str(REPOSITORY),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "DVC_NO_ANALYTICS": "1",
    }


def make_workspace(root: Path) -> Path:
    """A workspace of two stages, the first of which reads data/sources/."""
    (root / "data/sources").mkdir(parents=True)
    (root / "data/sources/rows.txt").write_text("one\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text("seed: 0\n")
    (root / "ingest.py").write_text(INGEST)
    (root / "stand_in.py").write_text(STAND_IN)
    (root / ".gitignore").write_text("/.prefloop/\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, env=environment(), check=True)
    return root


class Live:
    """A watch that runs in `root`, and what it has said."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.root = root
        self.events: list[dict[str, Any]] = []
        self.errors = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(options)],
            cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def said(self, event: str) -> list[dict[str, Any]]:
        return [said for said in self.events if said["event"] == event]

    def wait_for(self, event: str, count: int = 1, seconds: float = 240) -> list[dict[str, Any]]:
        """Waits until `event` was said so often."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if len(self.said(event)) >= count:
                return self.said(event)
            if self.process.poll() is not None and not self._readers[0].is_alive():
                break
            time.sleep(0.02)
        if len(self.said(event)) >= count:
            return self.said(event)
        raise AssertionError(f"{event!r} was not said {count} times: {self.events} {self.errors}")

    def end(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Sends a signal, if the process lives, and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(seconds)

    def wait(self, seconds: float = 120) -> int:
        code = self.process.wait(seconds)
        for reader in self._readers:
            reader.join(seconds)
        return code


def runs(root: Path) -> list[str]:
    """What the stand-ins noted: "began 001-native 002-native", "ended ...", "asked ..."."""
    log = root / "runs.log"
    return log.read_text().splitlines() if log.exists() else []


def deliver(root: Path, name: str, *prompts: str) -> Path:
    """Drops a batch of comparisons into the incoming folder, renamed into place."""
    path = root / "data/incoming" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.part")
    rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"} for prompt in prompts]
    draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
    draft.rename(path)
    return path


def prompts(root: Path) -> list[str]:
    """Prompts of all comparisons under data/sources/, sorted."""
    files = (root / "data/sources").glob("*/preferences.jsonl")
    return sorted(json.loads(line)["prompt"] for file in files for line in file.read_text().splitlines())
