"""Prints what a stage's process costs before and besides its work, started cold and forked warm.

    git clone . /tmp/tiny && cd /tmp/tiny && prefloop run --preset small
    python -m benchmarks.startup --workspace /tmp/tiny --stages sft,reward --repeats 3

Each stage is run by `dvc repro --single-item --force`, as a pipeline runs it. Columns, medians of the
repeats: wall and processor seconds (all processes of the stage, DVC's included) until the stage prints its
first line, and until the end; `imports` are the processor seconds of importing the stage's module in a new
process. Read the processor's columns on a machine that others use. The workspace's outputs are made anew.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import yaml

from flows.settings import apply, child_environment
from flows.stage_run import DVC_CHATTER
from flows.warm import MODULES
from flows.warm_child import WarmChild, WarmStarts
from tasks.support.code import stage_module
from tasks.support.process import end_group, group_members, lifeline

STAGES = "ingest,validate@preferences,sft,reward,ppo@ppo,evaluate@ppo,report"
LOOK_SECONDS = 0.02
SETTLE_SECONDS = 3.0
"""The warm process has imported everything when it used no processor for this long."""

Child = subprocess.Popen[str] | WarmChild
Figures = dict[str, float]


class Meter:
    """Processor time of every process of a group, those that ended included, by looking often (seconds)."""

    def __init__(self, group: int) -> None:
        self._group, self._seen = group, dict[int, float]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def read(self) -> float:
        return sum(self._seen.copy().values())

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            for pid in group_members(self._group):
                try:
                    used = psutil.Process(pid).cpu_times()
                except psutil.Error:
                    continue
                self._seen[pid] = used.user + used.system


def measured(begin: Callable[[], Child]) -> Figures:
    """Runs one stage to its end.

    Raises:
        SystemExit: it failed; what it printed is the message.
    """
    started = time.monotonic()
    child = begin()
    meter = Meter(child.pid)
    figures: Figures = {}
    printed = []
    assert child.stdout is not None
    for line in child.stdout:
        printed.append(line)
        if not figures and line.strip() and not line.startswith(DVC_CHATTER):
            figures = {"first_wall": time.monotonic() - started, "first_cpu": meter.read()}
    code = child.wait()
    meter.stop()
    end_group(child.pid, 15, 5.0)
    if code:
        raise SystemExit("".join(printed))
    return figures | {"wall": time.monotonic() - started, "cpu": meter.read()}


def import_seconds(module: str, root: Path, about: dict[str, str]) -> float:
    """Processor seconds of importing a module in a new process."""
    say = "import sys, time, importlib; importlib.import_module(sys.argv[1]); print(time.process_time())"
    done = subprocess.run(
        [sys.executable, "-c", say, module], cwd=root, env=about, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


@contextmanager
def warm_starts(root: Path, about: dict[str, str]) -> Iterator[WarmStarts]:
    """A warm process that has imported everything."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        command = [sys.executable, "-m", "flows.warm_process", address, *MODULES]
        child = subprocess.Popen(command, cwd=root, env=about, stderr=subprocess.DEVNULL)
        process, used, since = psutil.Process(child.pid), -1.0, time.monotonic()
        while time.monotonic() - since < SETTLE_SECONDS:
            now = sum(process.cpu_times()[:2])
            if now - used > 0.02:
                used, since = now, time.monotonic()
            time.sleep(0.1)
        print(f"the warm process: {used:.1f} s of processor time, once a run", file=sys.stderr)
        try:
            yield WarmStarts(address)
        finally:
            child.kill()
            child.wait()


def cold_start(command: Sequence[str], root: Path, about: dict[str, str]) -> subprocess.Popen[str]:
    """As `flows.supervision` starts a child."""
    return subprocess.Popen(
        command, cwd=root, env=about, start_new_session=True, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workspace", type=Path, required=True, help="where the pipeline has run")
    parser.add_argument(
        "--stages", default="ingest,validate@preferences,sft,reward,ppo@ppo,evaluate@ppo,report"
    )
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    root: Path = arguments.workspace.absolute()
    apply(root)
    declared = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    results: dict[str, Figures] = {}
    with lifeline(root / ".prefloop/benchmark-lifeline") as variables:
        about = {**child_environment(variables), "PREFLOOP_TRACKING": "off", "PYTHONPATH": os.getcwd()}
        with warm_starts(root, about) as starts:
            for stage in arguments.stages.split(","):
                body = declared[stage.partition("@")[0]]
                command = [
                    sys.executable,
                    "-m",
                    "flows.dvc_process",
                    "repro",
                    "--single-item",
                    "--force",
                    stage,
                ]
                module = stage_module(body.get("do", body)["cmd"])

                def warm(command: Sequence[str] = command) -> Child:
                    child = starts.start(command, root, about)
                    assert child is not None
                    return child

                def cold(command: Sequence[str] = command) -> Child:
                    return cold_start(command, root, about)

                figures: Figures = {"imports": import_seconds(module, root, about)}
                for way, begin in (("cold", cold), ("warm", warm)):
                    runs = [measured(begin) for _ in range(arguments.repeats)]
                    for name in runs[0]:
                        figures[f"{way}_{name}"] = statistics.median(run[name] for run in runs)
                results[stage] = {name: round(value, 2) for name, value in figures.items()}
                print_row(stage, results[stage], heading=len(results) == 1)
    print(json.dumps({"load": os.getloadavg(), "stages": results}))


def print_row(stage: str, figures: Figures, *, heading: bool) -> None:
    """One stage, to standard error, so that standard output is JSON alone."""
    if heading:
        print(f"{'stage':24}" + "".join(f"{name:>16}" for name in figures), file=sys.stderr)
    print(f"{stage:24}" + "".join(f"{value:16.2f}" for value in figures.values()), file=sys.stderr)


if __name__ == "__main__":
    main()
