"""A stage that shares its training with another process: real processes, real deaths."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefloop.config.compute import ComputeConfig
from prefloop.errors import ConfigError
from prefloop.files import write_json, write_jsonl
from prefloop.training.environment import resolve
from tasks import sft
from tasks.support.keys import stage_key
from tasks.support.sharing import shared
from tests import tiny
from tests.sockets import beyond_loopback, listening
from tests.training.trainings import DEMONSTRATIONS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 60
PLACES: list[tuple[int, int, Literal["none", "full"]]] = [
    (1, 1, "none"),
    (2, 1, "none"),
    (2, 1, "full"),
    (1, 2, "none"),
]
"""Processes, threads of each, and sharding."""
STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A base model and demonstrations; whatever stage still runs at the end is ended."""
    folder = tmp_path_factory.mktemp("workspace")
    section = {"steps": STEPS, "batch_size": 7, "max_length": 48, "learning_rate": 1e-3}
    compute = {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_seconds": 0.0}
    (folder / "params.yaml").write_text(yaml.safe_dump({"seed": 0, "compute": compute, "sft": section}))
    # Without code among its dependencies; that a stage's key knows the environment is what counts here.
    stage = {"cmd": "python -m tasks.sft", "params": ["seed", "sft", {"runs/environment.json": []}]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"sft": stage}}))
    tiny.saved(folder / "models" / "base")
    (folder / "data" / "validated").mkdir(parents=True)
    write_jsonl(folder / "data" / "validated" / "demonstrations.jsonl", DEMONSTRATIONS)
    yield folder
    for process in STARTED:
        if process.poll() is None:
            process.kill()


def resolve_environment(
    workspace: Path, processes: int, threads: int = 1, sharding: Literal["none", "full"] = "none"
) -> None:
    """Writes runs/environment.json, as the stage environment does."""
    config = ComputeConfig(
        device="cpu", precision="fp32", threads=threads, processes=processes, sharding=sharding
    )
    write_json(workspace / "runs" / "environment.json", resolve(config).to_dict())


def start(
    workspace: Path, processes: int, sharding: Literal["none", "full"] = "none"
) -> subprocess.Popen[str]:
    """The stage sft as a process, its own leader as under a pipeline."""
    resolve_environment(workspace, processes, sharding=sharding)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFLOOP", "DVC"))}
    environment |= {"PYTHONPATH": str(ROOT), "PREFLOOP_TRACKING": "off"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks.sft"],
        cwd=workspace,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said."""
    _, said = process.communicate(timeout=120)
    return process.returncode, said


def curve_length(workspace: Path) -> int:
    """Steps in the curve of the stage that is under way."""
    return sum(
        len(path.read_text().splitlines()) for path in workspace.glob(".prefloop/scratch/sft/*/curve.jsonl")
    )


def under_way(workspace: Path, process: subprocess.Popen[str], steps: int) -> psutil.Process:
    """Waits until the training has gone `steps` steps on; the other process."""
    first = curve_length(workspace)
    deadline = time.monotonic() + 90
    while curve_length(workspace) < first + steps:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the stage did not come that far"
        time.sleep(0.01)
    children = psutil.Process(process.pid).children()
    (other,) = [child for child in children if "PREFLOOP_RANK" in child.environ()]
    return other


def gone(process: psutil.Process) -> bool:
    """True once a process has ended; waits some seconds."""
    _, alive = psutil.wait_procs([process], timeout=10)
    return not alive


def results(workspace: Path) -> tuple[list[dict[str, float]], dict[str, Any], dict[str, torch.Tensor]]:
    """Curve, metrics and weights."""
    with (workspace / "plots" / "sft.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    metrics = json.loads((workspace / "metrics" / "sft.json").read_text())
    return rows, metrics, load_file(workspace / "models" / "sft" / "model.safetensors")


def test_two_processes_through_deaths_and_stops_make_what_one_makes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_PIPELINE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    monkeypatch.chdir(workspace)
    resolve_environment(workspace, 1)
    sft.main()
    rows, metrics, weights = results(workspace)
    (workspace / "plots" / "sft.csv").unlink()

    process = start(workspace, 2)
    other = under_way(workspace, process, 4)
    sockets = listening([psutil.Process(process.pid), other])
    assert sockets, "gloo's are among them"
    assert beyond_loopback(sockets) == set()
    met = Path(other.environ()["PREFLOOP_RANK"].split(":", 2)[2]).parent
    process.kill()
    assert ended(process)[0] == -signal.SIGKILL
    assert gone(other), "rank 0 is dead, and its process lives on"
    assert not met.exists(), "and left nothing in the folder for temporary files"

    process = start(workspace, 2)
    other = under_way(workspace, process, 4)
    (log,) = workspace.glob(".prefloop/scratch/sft/*/rank-1.log")
    log.write_text("the floor is lava\n")
    other.kill()
    code, said = ended(process)
    assert code == 5, said
    assert "process 1 of 2 that share this training was ended by SIGKILL" in said
    assert "its last lines:\n    the floor is lava" in said

    process = start(workspace, 2)
    other = under_way(workspace, process, 4)
    os.killpg(process.pid, signal.SIGTERM)  # both get it, as from a pipeline that ends
    code, said = ended(process)
    assert code == 143, said
    assert "stopped; run again to go on from the last checkpoint" in said
    assert gone(other)
    assert not (workspace / "plots" / "sft.csv").exists()

    code, said = ended(start(workspace, 2, "full"))  # goes on from whole weights with shards
    assert code == 0, said
    assert said.count(f"step {STEPS}/{STEPS}") == 1, "the other process shows nothing"
    record = json.loads((workspace / "runs" / "sft.json").read_text())
    assert record["resumed_from_step"] >= 12
    assert record["environment"]["processes"] == 2
    assert record["environment"]["sharding"] == "full"
    found_rows, found_metrics, found_weights = results(workspace)
    assert found_metrics == pytest.approx(metrics)
    assert [row["step"] for row in found_rows] == list(range(1, STEPS + 1))
    for row, expected in zip(found_rows, rows, strict=True):
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert max(float((found_weights[name] - weights[name]).abs().max()) for name in weights) < 1e-4
    assert not list(workspace.glob(".prefloop/scratch/sft/*/*")), "no checkpoint or log is left"
    assert not list(workspace.glob("models/.*")), "no draft of a model is left"


def test_a_checkpoint_is_found_by_another_number_of_processes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    keys = []
    for processes, threads, sharding in PLACES:
        resolve_environment(workspace, processes, threads, sharding)
        keys.append(stage_key("sft", {}))
    assert keys[0] == keys[1] == keys[2]
    assert keys[0] != keys[3]


def test_only_a_stage_can_start_other_processes(tmp_path: Path) -> None:
    environment = resolve(ComputeConfig(device="cpu", processes=2))
    with pytest.raises(ConfigError, match="no stage that could start others"), shared(environment, tmp_path):
        pass


def test_one_process_shards_nothing() -> None:
    config = ComputeConfig(device="cpu", processes=1, sharding="full")
    assert resolve(config).sharding == "none"
    assert resolve(dataclasses.replace(config, processes=2)).sharding == "full"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.training.environment._gpu", lambda: ("GPU", True, 2))
    assert resolve(ComputeConfig(processes=0)).processes == 2
    assert resolve(ComputeConfig(processes=0, device="cpu")).processes == 1
    with pytest.raises(ConfigError, match="processes is 3, but 2 CUDA GPUs are visible"):
        resolve(ComputeConfig(processes=3))
