"""The real pipeline at a tiny size: one workspace that ran, for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TINY = {
    "ingest.world.documents": 400,
    "ingest.world.demonstrations": 120,
    "ingest.world.preferences": 60,
    "ingest.world.prompts": 120,
    "ingest.world.evaluation": 30,
    "ingest.world.harmful": 12,
    "base.architecture.hidden_size": 32,
    "base.architecture.intermediate_size": 64,
    "base.architecture.layers": 1,
    "base.steps": 30,
    "sft.steps": 8,
    "reward.steps": 4,
    "reward.normalise_prompts": 16,
    "reward.bootstrap": 100,
    "ppo.steps": 2,
    "ppo.batch_size": 16,
    "ppo.select_prompts": 8,
    "dpo.steps": 4,
    "evaluate.bootstrap": 100,
    "evaluate.oracle_samples": 2,
    "evaluate.batch_size": 64,
}
OWN = [
    {"prompt": f"Is lamp {n} brighter than lamp {n + 1}?", "chosen": f"Lamp {n} is.", "rejected": "Maybe."}
    for n in range(24)
]
"""Comparisons that the user imported before the first run."""


class Workspace:
    """A copy of this repository, as a fresh clone would be, in which commands are given.

    Attributes:
        variables: what commands find in their environment besides.
    """

    def __init__(self, root: Path, variables: dict[str, str] | None = None) -> None:
        self.root, self.variables = root, variables or {}

    def environment(self) -> dict[str, str]:
        """What a person's shell would have, without what belongs to this test run."""
        foreign = ("PREFECT", "DVC_STAGE", "PREFLOOP")
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        fixed = {"PYTHONPATH": str(self.root), "GIT_CONFIG_GLOBAL": os.devnull}
        return {**own, **self.variables, **fixed}

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout}{done.stderr}"
        return done

    def prefloop(self, *arguments: str) -> str:
        return self.command("flows.cli.main", *arguments).stdout

    def run(self, *arguments: str) -> str:
        """`prefloop run`; what it printed, progress included."""
        done = self.command("flows.cli.main", "run", *arguments)
        return done.stdout + done.stderr

    def plan(self) -> dict[str, dict]:
        return {stage["stage"]: stage for stage in json.loads(self.prefloop("plan", "--json"))}

    def actions(self, action: str) -> set[str]:
        return {name for name, stage in self.plan().items() if stage["action"] == action}

    def read(self, name: str) -> dict:
        return json.loads((self.root / name).read_text())

    def weights(self) -> dict[str, bytes]:
        return {
            str(file.relative_to(self.root)): file.read_bytes()
            for file in sorted(self.root.glob("models/*/*.safetensors"))
        }


def clone_of(repository: Path, root: Path) -> Path:
    """Copies the repository as it is, and commits it there; returns `root`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (repository / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, root / name)
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "a clone"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.fixture(scope="session")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, request: pytest.FixtureRequest
) -> Workspace:
    """After a first run at a tiny size, on the embedded world and a file of the user's own. Shared: leave it
    runnable."""
    made = Workspace(clone_of(repository, tmp_path_factory.mktemp("real") / "prefloop"))
    own = made.root / "comparisons.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in OWN))
    made.prefloop("data", "import", "trl", own.name)
    own.unlink()
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    made.first_output = made.run(*settings)  # with a server of its own, as a stranger's first run
    made.variables["PREFECT_API_URL"] = request.getfixturevalue("prefect_api")
    return made
