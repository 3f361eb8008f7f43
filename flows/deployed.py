"""The flows behind infra/prefect.yaml: one `prefloop run` in the workspace of the worker that takes them.

The worker's environment says which workspace that is (PREFLOOP_WORKSPACE), never whoever starts a flow run:
access to Prefect's API does not lead to other folders of the machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.parameters_for_a_run import Number, parameters_for_a_run
from flows.settings import SKIPPED, STATE, child_environment
from flows.workspace_lock import live_run
from prefloop.errors import ConfigError, PrefloopError, WorkspaceError
from tasks.support.process import lifeline

WORKSPACE = "PREFLOOP_WORKSPACE"
POLL_SECONDS = 5.0
GRACE_SECONDS = 25.0
"""How long a cancelled run may take to save a checkpoint; Prefect kills its flow run after 30 s."""
LAST_LINES = 8


@flow(name="prefloop-run", persist_result=False)
def run_all(
    pool: str = "", jobs: int = 2, wait_hours: float = 12.0, changes: dict[str, Number] | None = None
) -> Any:
    """Runs the whole pipeline; what is unchanged is skipped.

    Args:
        pool: Prefect work pool whose workers run the training stages; empty runs all of it here.
        jobs: stages at once (count).
        wait_hours: how long to wait for a run that somebody else started in the workspace (hours).
        changes: parameters of this run alone, `{"ppo.kl_coef": 0.1}`: numbers, true or false.
    """
    return _run((), pool, jobs, wait_hours, changes or {}, force=False)


@flow(name="prefloop-run-stage", flow_run_name="{stage}", persist_result=False)
def run_one(
    stage: str,
    force: bool = False,
    pool: str = "",
    jobs: int = 2,
    wait_hours: float = 12.0,
    changes: dict[str, Number] | None = None,
) -> Any:
    """Runs one stage with all it needs.

    Args:
        stage: name as in dvc.yaml, such as `sft` or `ppo@ppo`.
        force: run it although nothing changed.
        pool, jobs, wait_hours, changes: as for the whole pipeline.
    """
    return _run((stage,), pool, jobs, wait_hours, changes or {}, force=force)


def _run(
    stages: Sequence[str],
    pool: str,
    jobs: int,
    wait_hours: float,
    changes: Mapping[str, Number],
    *,
    force: bool,
) -> State:
    say = get_run_logger().info
    options = [f"--jobs={jobs}", *([f"--on={pool}"] if pool else []), *(["--force"] if force else [])]
    # Behind `--` a stage is never taken for an option.
    command = [sys.executable, "-m", "flows.cli.main", "run", "--yes", "--json", *options, "--", *stages]
    try:
        status, lines, values = _when_free(workspace(), command, changes, wait_hours * 3600, say)
    except PrefloopError as error:
        return Failed(message=f"exit code {error.exit_code}\n{error}")
    if status:
        return Failed(message="\n".join([f"exit code {status}", *lines[-LAST_LINES:]]))
    outcomes = list(values["stages"].values())
    done = len(outcomes) - outcomes.count("skipped")
    if not done:
        return Completed(name=SKIPPED, message=f"nothing changed: {len(outcomes)} stages are up to date")
    return Completed(message=f"{done} of {len(outcomes)} stages had work to do")


def _when_free(
    root: Path,
    command: Sequence[str],
    changes: Mapping[str, Number],
    seconds: float,
    say: Callable[[str], None],
) -> tuple[int, list[str], Mapping[str, Any]]:
    """What `_to_its_end` gives, once the workspace is free. Who was quicker by a moment is waited for."""
    deadline = time.monotonic() + seconds
    tried_again = False
    while True:
        wait_until_free(root, max(0.0, deadline - time.monotonic()), say)
        with parameters_for_a_run(root, changes, say):
            ended = _to_its_end(root, command, say)
        if ended[0] != WorkspaceError.exit_code or (tried_again and live_run(root) is None):
            return ended
        tried_again = True


def workspace() -> Path:
    """The worker's workspace.

    Raises:
        ConfigError: the worker's environment names none, or no workspace.
    """
    named = os.environ.get(WORKSPACE, "")
    if not named:
        raise ConfigError(
            f"the worker does not know its workspace: {WORKSPACE} is not set",
            f"{WORKSPACE}=/path/to/workspace bash infra/worker.sh workspace",
        )
    root = Path(named).absolute()
    if not (root / "dvc.yaml").exists():
        raise ConfigError(f"{WORKSPACE} is {root}, where no dvc.yaml is", "name a clone of your repository")
    return root


def wait_until_free(
    root: Path, seconds: float, say: Callable[[str], None], *, poll: float = POLL_SECONDS
) -> None:
    """Waits while somebody else's run is live in the workspace, so that what was asked for is not lost.

    Raises:
        WorkspaceError: it was still live after `seconds`.
    """
    deadline = time.monotonic() + seconds
    said: tuple[int, str] | None = None
    while (live := live_run(root)) is not None:
        if live != said:
            say(f"{live[1]} is live in {root} (pid {live[0]}): waiting until it ends")
            said = live
        if time.monotonic() > deadline:
            raise WorkspaceError(
                f"{live[1]} is still live in {root} (pid {live[0]})",
                "wait until it ends, or end it",
            )
        time.sleep(poll)


def _to_its_end(
    root: Path, command: Sequence[str], say: Callable[[str], None]
) -> tuple[int, list[str], Mapping[str, Any]]:
    """Exit status, last lines, and values of `prefloop run --json`; a cancelled flow run ends it softly."""
    lines: list[str] = []
    (root / STATE).mkdir(exist_ok=True)
    pipe = root / STATE / f"flow-run-{flow_run.get_id() or os.getpid()}"
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output, lifeline(pipe) as variables:
        child = subprocess.Popen(
            list(command),
            cwd=root,
            env=run_environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        with ended_softly(child):
            assert child.stderr is not None
            for line in child.stderr:
                lines = [*lines[1 - LAST_LINES :], line.rstrip("\n")]
                say(lines[-1])
            child.wait()
        output.seek(0)
        text = output.read()
    return child.returncode, lines, {} if child.returncode else json.loads(text)


@contextmanager
def ended_softly(child: subprocess.Popen[str]) -> Iterator[None]:
    """Asks the run to stop after its step when the block is left before it ended."""
    try:
        yield
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGTERM)  # the second time it ends at once
                child.wait(POLL_SECONDS)


def run_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Environment of the run: a flow run of its own, and the workspace's code before the installed one."""
    return {
        name: value
        for name, value in child_environment({**extra, "PYTHONSAFEPATH": ""}).items()
        if not name.startswith("PREFECT__")
    }
