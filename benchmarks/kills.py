"""Does a training that is killed end with the bytes of one that is not? Real stages, real SIGKILL.

    python -m benchmarks.kills [STAGE ...] [--kills 5] [--seed 0] [--workspace DIR] [--json FILE]

Makes a small workspace of the embedded help desk. Then each training stage runs once undisturbed and once
killed, with all it started, at five random steps, each time going on from its last checkpoint. Prints where
it was killed, where it went on, and whether all files of its model are the same; exits with 1 if one differs
or a kill came too late. Takes about two minutes a stage on two cores, most of them imports.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from benchmarks.figures_file import write_figures
from benchmarks.workspaces import ROOT, copy_project
from prefloop.config.params import METHODS
from prefloop.config.policies import overlaid
from prefloop.config.read import read_yaml

BEFORE = ("environment", "ingest")
KINDS = ("text", "demonstrations", "preferences", "prompts", "evaluation", "unpaired")
STAGES = ("base", "sft", "reward", *METHODS)
SIZES = {
    "compute": {"threads": 1, "checkpoint_seconds": 0.0},
    "ingest": {
        "world": {
            "documents": 1500,
            "demonstrations": 600,
            "preferences": 500,
            "prompts": 300,
            "evaluation": 40,
            "harmful": 20,
        }
    },
    "base": {"steps": 60},
    "reward": {"epochs": 1, "bootstrap": 50, "normalise_prompts": 32},
}
ON_POLICY = {"steps": 8, "batch_size": 64, "select_prompts": 16, "select_every": 2}
CHANGES = {
    "online_dpo": {**ON_POLICY, "batch_size": 32},
    "rejection": {"group_size": 2, "look_prompts": 16},
    **dict.fromkeys(("ppo", "grpo", "rloo", "reinforce"), ON_POLICY),
    **{method: {"look_prompts": 16} for method in ("dpo", "kto", "orpo", "simpo")},
}


@dataclass(frozen=True)
class Row:
    """What became of one stage.

    Attributes:
        killed_at: steps of the checkpoints there were when it was killed.
        files: of its model. different: those that differ from the undisturbed run's.
    """

    stage: str
    killed_at: list[int]
    files: int
    different: list[str]
    seconds: float


def make_workspace(folder: Path) -> None:
    """A copy of the project with small parameters, its data made and validated."""
    copy_project(folder)
    params = overlaid(read_yaml(ROOT / "params.yaml"), SIZES)
    params = overlaid(params, CHANGES)
    params["policies"] = {method: {method: {}} for method in METHODS}
    params["evaluate"]["policies"] = ["base", "sft", *METHODS]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    for stage in BEFORE:
        run(folder, [stage])
    for kind in KINDS:
        run(folder, ["validate", kind])


def command(stage: Sequence[str]) -> list[str]:
    """The stage's own, as dvc.yaml has it."""
    return [sys.executable, "-m", f"tasks.{stage[0]}", *stage[1:]]


def environment() -> dict[str, str]:
    """Of a stage: no hub, no tracking server, one thread."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PREFLOOP_TRACKING": "off", "OMP_NUM_THREADS": "1"}


def run(folder: Path, stage: Sequence[str]) -> None:
    """Runs a stage to its end."""
    done = subprocess.run(
        command(stage), cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(stage)} failed:\n{done.stderr[-3000:]}")


def last_checkpoint(folder: Path) -> tuple[int, int]:
    """Step and part of the latest checkpoint in scratch; (0, 0) without any."""
    found = [(0, 0)]
    for path in (folder / ".prefloop" / "scratch").glob("*/*/checkpoints/checkpoint-*"):
        if numbers := re.fullmatch(r"checkpoint-(\d+)(?:-(\d+))?", path.name):
            found.append((int(numbers[1]), int(numbers[2] or 0)))
    return max(found)


def kill_after(folder: Path, stage: Sequence[str], step: int, delay: float) -> bool:
    """Starts a stage and kills it `delay` seconds after its checkpoint of `step`.

    Returns:
        False if it ended before.
    """
    process = subprocess.Popen(
        command(stage),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None:
        if last_checkpoint(folder)[0] >= step:
            time.sleep(delay)
            break
        time.sleep(0.005)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def undisturbed_steps(folder: Path, name: str) -> int:
    """Steps that a finished training took, by its curve."""
    lines = (folder / "plots" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return int(float(lines[-1].split(",")[0]))


def check(folder: Path, stage: str, kills: int, seed: int) -> Row:
    """Runs a training undisturbed, then killed; leaves the model for the stages after it."""
    words = [stage, stage] if stage in METHODS else [stage]
    started = time.monotonic()
    run(folder, words)
    model = folder / "models" / stage
    expected, total = digests(model), undisturbed_steps(folder, stage)
    shutil.rmtree(model)
    shutil.rmtree(folder / ".prefloop" / "scratch", ignore_errors=True)
    draw = random.Random(f"{seed} {stage}")
    steps = sorted(draw.sample(range(1, total - 1), min(kills, total - 2)))
    killed = [kill_after(folder, words, step, draw.uniform(0.0, 0.1)) for step in steps]
    places = [step for step, alive in zip(steps, killed, strict=True) if alive]
    run(folder, words)
    found = digests(model)
    different = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
    return Row(stage, places, len(expected), sorted(different), time.monotonic() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], help="training stages; all without")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--workspace", type=Path, help="where to work and what to keep; a temporary folder without"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="prefloop-kills-") as temporary:
        folder = options.workspace or Path(temporary)
        make_workspace(folder)
        wanted = options.stages or STAGES
        for stage in STAGES:
            if stage not in wanted:
                if stage in ("base", "sft", "reward"):
                    run(folder, [stage])
                continue
            row = check(folder, stage, options.kills, options.seed)
            rows.append(row)
            same = f"{row.files} files the same" if not row.different else f"DIFFERENT: {row.different}"
            print(f"{stage:12} killed after steps {row.killed_at}: {same}  ({row.seconds:.0f} s)", flush=True)
    if options.json:
        write_figures(options.json, rows)
    failed = [row.stage for row in rows if row.different or len(row.killed_at) < options.kills]
    print(
        f"{len(rows)} stages, {sum(len(row.killed_at) for row in rows)} kills, {len(failed)} failed {failed}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
