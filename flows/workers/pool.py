"""The coordinator's side of `--on POOL`: asks a worker for a stage and brings home what it made."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.leftovers import mark_finished
from flows.planning.model import StagePlan
from flows.planning.planner import open_repo, pipeline_stages
from flows.settings import STATE
from flows.stage_run import Outcome, StageFailed, StageResult
from flows.supervision import Stopped, Supervisor
from flows.workers.code import publish_code
from flows.workers.data import produced_inputs, push, take_over
from flows.workers.exchange import open_exchange
from flows.workers.here import settled
from flows.workers.trust import check_files
from prefloop.errors import ConfigError
from prefloop.files import atomic_file

if TYPE_CHECKING:
    from dvc.repo import Repo

POLL_SECONDS = 1.0
ENTRYPOINT = "flows.workers.stage.remote_stage"
Show = Callable[[str, str], None]


class Pool:
    """Stages on the workers of one Prefect work pool.

    Raises:
        ConfigError: no Prefect server is named; workers do not reach the one that a run starts for itself.
    """

    def __init__(self, supervisor: Supervisor, name: str) -> None:
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigError(
                f"--on {name} needs a Prefect server that workers reach",
                "`prefect server start`, set PREFECT_API_URL here and for `prefect worker start --pool "
                f"{name}`, and try again",
            )
        self._supervisor = supervisor
        self._name = name
        self._root = supervisor.root
        self._exchange = open_exchange(self._root)
        self._commit = publish_code(self._root, self._exchange.storage)
        self._deployment = ensure_deployment(name)

    def prepare(self) -> None:
        """Resolves the environment where the stages will run; a plan for the pool is made with it."""
        self._keep_files(self._run("", lambda _what, line: None))

    def takes(self, repo: Repo) -> set[str]:
        """Stages that compute with models: those that read or write under models/."""
        return {
            stage.name
            for stage in pipeline_stages(repo)
            if any(str(item.def_path).startswith("models/") for item in (*stage.deps, *stage.outs))
        }

    def run(self, stage: StagePlan, show: Show) -> StageResult:
        """Runs a stage on a worker; its dvc.lock entry and all but its weights are here afterwards.

        Raises:
            StageFailed: the worker's run failed.
            Stopped: the run was asked to end; the worker's run is cancelled.
        """
        started = time.monotonic()
        outcome = settled(self._root, stage)
        if outcome is None:
            repo = open_repo(self._root)
            push(repo, produced_inputs(repo, stage.name))
            result = self._run(stage.name, show)
            outcome = Outcome[result["outcome"]]
            self._keep_files(result)
            take_over(self._root, stage.name, result["entry"])
            mark_finished(self._root, stage.name)
        return StageResult(stage.name, outcome, time.monotonic() - started)

    def _run(self, stage: str, show: Show) -> dict[str, Any]:
        from prefect.deployments import run_deployment

        path = self._root / "dvc.lock"
        lock = path.read_text(encoding="utf-8") if path.exists() else ""
        key = hashlib.sha256(f"{stage}\0{self._commit}\0{lock}".encode()).hexdigest()
        flow_run: Any = run_deployment(
            self._deployment,
            parameters={
                "stage": stage,
                "commit": self._commit,
                "exchange": self._exchange.place,
                "lock": lock,
                "pipeline": self._supervisor.pipeline,
            },
            timeout=0,
            idempotency_key=f"{key}:{self._supervisor.pipeline}",
        )
        show(stage, f"waits for a worker of pool {self._name}")
        self._wait(flow_run.id, stage or "environment", show)
        return self._exchange.read_result(str(flow_run.id))

    def _wait(self, flow_run: UUID, stage: str, show: Show) -> None:
        from prefect.client.orchestration import get_client
        from prefect.states import Cancelling

        seen = ""
        with get_client(sync_client=True) as client:
            while True:
                state = client.read_flow_run(flow_run).state
                if state is not None and state.name != seen:
                    seen = str(state.name)
                    show(stage, f"on pool {self._name}: {seen}")
                if state is not None and state.is_final():
                    break
                if self._supervisor.signal_number is not None:
                    client.set_flow_run_state(flow_run, Cancelling(), force=True)
                    raise Stopped(stage)
                time.sleep(POLL_SECONDS)
        if not state.is_completed():
            lines = (state.message or "").splitlines()[-8:]
            raise StageFailed(stage, 1, STATE / "logs", lines or [f"its flow run ended as {seen}"])

    def _keep_files(self, result: dict[str, Any]) -> None:
        repo = open_repo(self._root)
        declared = {
            Path(out.fs_path).relative_to(self._root.absolute()).as_posix()
            for stage in pipeline_stages(repo)
            for out in stage.outs
            if not out.use_cache
        }
        check_files(result["files"], declared)
        for path, text in result["files"].items():
            with atomic_file(self._root / Path(path)) as handle:
                handle.write(text)


def ensure_deployment(pool: str) -> str:
    """Makes the work pool and the deployment for it where they are missing; returns the deployment's name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.utilities.callables import parameter_schema

    from flows.workers.stage import remote_stage

    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        client.create_deployment(
            flow_id=client.create_flow(remote_stage),
            name=pool,
            entrypoint=ENTRYPOINT,
            work_pool_name=pool,
            pull_steps=[],
            parameter_openapi_schema=parameter_schema(remote_stage).model_dump_for_openapi(),
        )
    return f"{remote_stage.name}/{pool}"
