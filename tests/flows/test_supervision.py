"""The children of a run whose own parent is killed: asked to end once, with time to save what they have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

TRAINER = """
import signal, sys, time
from pathlib import Path

def asked(number, _frame):
    time.sleep(1.5)  # a checkpoint takes its time
    Path("saved").write_text(str(number))
    sys.exit(128 + number)

signal.signal(signal.SIGINT, asked)
Path("training").touch()
time.sleep(600)
"""

RUN = """
import sys
from pathlib import Path
from flows.supervision import Stopped, supervise
with supervise(Path("."), "run", lambda line: print(line, file=open("said", "a"))) as supervisor:
    try:
        supervisor.run([sys.executable, "trainer.py"], "a stage", print)
    except Stopped:
        Path("stopped").touch()
"""

PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from tasks.support.process import lifeline
with lifeline(Path("parent")) as variables:
    subprocess.Popen([sys.executable, "run.py"], env={**os.environ, **variables}, start_new_session=True)
    time.sleep(600)
"""


def test_the_death_of_a_runs_parent_is_one_request_not_two(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "run.py").write_text(RUN)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    wait_until((tmp_path / "training").exists)
    parent.kill()
    parent.wait()
    wait_until((tmp_path / "stopped").exists)
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGINT))
    assert (tmp_path / "said").read_text().count("once more ends at once") == 1
    assert "ending at once" not in (tmp_path / "said").read_text()
