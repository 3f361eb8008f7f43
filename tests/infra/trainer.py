"""A workspace whose one stage is real training, and a way to hold that training at a step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

from prefloop.config.compute import ComputeConfig
from prefloop.files import write_json, write_jsonl
from prefloop.training.environment import resolve
from tests import tiny
from tests.infra.conftest import REPOSITORY
from tests.training.trainings import DEMONSTRATIONS
from tests.waiting import wait_until

STEPS = 150
STAGE = {
    "cmd": "python -m tasks.sft",
    "deps": ["models/base", "data/validated/demonstrations.jsonl"],
    "params": ["seed", "sft", {"runs/environment.json": None}],
    "outs": ["models/sft", "runs/sft.json"],
    "metrics": [{"metrics/sft.json": {"cache": False}}],
    "plots": [{"plots/sft.csv": {"x": "step"}}],
}
OURS = ("PREFECT", "PREFLOOP", "DVC", "MLFLOW_T")


class Trainer:
    """The workspace at `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def make(cls, root: Path) -> Trainer:
        section = {"steps": STEPS, "batch_size": 7, "max_length": 48, "learning_rate": 1e-3}
        compute = ComputeConfig(device="cpu", precision="fp32", threads=1, checkpoint_seconds=0.0)
        settings = {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_seconds": 0.0}
        root.mkdir()
        (root / "params.yaml").write_text(yaml.safe_dump({"seed": 0, "compute": settings, "sft": section}))
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"sft": STAGE}}))
        (root / ".gitignore").write_text("/.prefloop/\n/models/\n/metrics/\n/runs/\n/plots/\n/data/\n")
        write_json(root / "runs/environment.json", resolve(compute).to_dict())
        tiny.saved(root / "models/base")
        (root / "data/validated").mkdir(parents=True)
        write_jsonl(root / "data/validated/demonstrations.jsonl", DEMONSTRATIONS)
        made = cls(root)
        for command in (
            ["git", "init", "-q", "-b", "main"],
            [sys.executable, "-m", "dvc", "init", "-q"],
            ["git", "add", "-A"],
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "a workspace"],
        ):
            subprocess.run(command, cwd=root, env=made.environment(), check=True)
        return made

    def environment(self) -> dict[str, str]:
        cleaned = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        ours = {"PYTHONPATH": str(REPOSITORY), "PREFLOOP_TRACKING": "off", "GIT_CONFIG_GLOBAL": os.devnull}
        return {**cleaned, **ours, "DVC_NO_ANALYTICS": "1"}

    def undisturbed(self, folder: Path) -> Trainer:
        """A copy in which the stage ran from its first step to its last."""
        subprocess.run(["cp", "-a", str(self.root), str(folder)], check=True)
        command = [sys.executable, "-m", "tasks.sft"]
        subprocess.run(command, cwd=folder, env=self.environment(), check=True, capture_output=True)
        return Trainer(folder)

    def results(self) -> dict[str, bytes]:
        """Weights, curve and figures."""
        names = ("models/sft/model.safetensors", "plots/sft.csv", "metrics/sft.json")
        return {name: (self.root / name).read_bytes() for name in names}

    def resumed_from(self) -> int:
        return int(json.loads((self.root / "runs/sft.json").read_text())["resumed_from_step"])

    def checkpoints(self) -> list[Path]:
        return sorted(self.root.glob(".prefloop/scratch/sft/*/checkpoints/checkpoint-*"))

    def steps(self) -> int:
        """Steps in the curve of the training that is under way, or was stopped."""
        curves = self.root.glob(".prefloop/scratch/sft/*/curve.jsonl")
        return sum(len(curve.read_text().splitlines()) for curve in curves)

    def processes(self) -> list[psutil.Process]:
        """Trainers of this workspace."""
        found = []
        for process in psutil.process_iter():
            try:
                if "tasks.sft" in process.cmdline() and Path(process.cwd()) == self.root:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def hold(self, seconds: float = 240) -> psutil.Process:
        """Waits until training is under way, and stops it there: what asks it to end may take its time."""

        def under_way() -> psutil.Process | None:
            if self.steps() < 5:
                return None
            for process in self.processes():
                if not any(word.endswith("sh") for word in process.cmdline()[:1]):
                    process.send_signal(signal.SIGSTOP)
                    return process
            return None

        return wait_until(under_way, seconds)

    @staticmethod
    def let_go_when_asked(process: psutil.Process, seconds: float = 120) -> None:
        """Lets a held trainer go on once it was asked to end."""

        def asked() -> bool:
            status = Path(f"/proc/{process.pid}/status").read_text()
            pending = {
                int(value, 16)
                for name, _, value in (line.partition(":\t") for line in status.splitlines())
                if name in ("SigPnd", "ShdPnd")
            }
            return any(bits & (1 << (signal.SIGINT - 1) | 1 << (signal.SIGTERM - 1)) for bits in pending)

        try:
            wait_until(asked, seconds)
        finally:
            process.send_signal(signal.SIGCONT)
