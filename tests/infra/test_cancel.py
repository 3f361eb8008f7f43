"""A flow run of a deployment that is cancelled: its trainer saves a checkpoint, and the next run goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.infra.conftest import Server, end
from tests.infra.test_deployed import ended, start
from tests.infra.test_setup import ask
from tests.infra.trainer import STEPS, Trainer
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(sys.platform != "linux", reason="holds a process by what /proc says of its signals"),
]


@pytest.fixture
def workspace(server: Server, tmp_path: Path) -> Iterator[Trainer]:
    """A workspace whose worker is running."""
    made = Trainer.make(tmp_path / "workspace")
    command = ["prefect", "worker", "start", "--pool", "workspace", "--type", "process", "--limit", "1"]
    variables = {**server.variables, "PREFLOOP_WORKSPACE": str(made.root), "PREFLOOP_TRACKING": "off"}
    with open(tmp_path / "worker.log", "wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, env=variables,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    yield made
    end(child)
    print((tmp_path / "worker.log").read_text()[-4000:])


def test_a_cancelled_run_stops_with_a_checkpoint_and_the_next_ends_with_the_same_bytes(
    server: Server, workspace: Trainer, tmp_path: Path
) -> None:
    expected = workspace.undisturbed(tmp_path / "undisturbed").results()
    first = start(server, "pipeline")
    trainer = workspace.hold()
    answer = ask(server, f"flow_runs/{first}/set_state", state={"type": "CANCELLING"}, force=True)
    assert answer["status"] == "ACCEPT"
    workspace.let_go_when_asked(trainer)
    assert ended(server, first)["type"] == "CANCELLED"
    wait_until(lambda: not workspace.processes(), 60)
    assert workspace.checkpoints()
    assert 5 <= workspace.steps() < STEPS
    assert not (workspace.root / "models/sft").exists()

    assert ended(server, start(server, "pipeline"))["type"] == "COMPLETED"
    assert workspace.resumed_from() >= 5
    assert workspace.results() == expected
