"""The coordinator's side of a stage on a pool: asks a worker for it and brings home what it made."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.leftovers import mark_finished
from flows.planning.model import Action, Place, StagePlan
from flows.planning.planner import open_repo, pipeline_stages
from flows.stage_run import Outcome, StageResult
from flows.supervision import Supervisor
from flows.workers.attempts import attempt, fence, stage_key
from flows.workers.code import publish_code
from flows.workers.data import produced_inputs, push, take_over
from flows.workers.deliveries import take_home
from flows.workers.exchange import open_exchange
from flows.workers.here import settled
from flows.workers.limits import limit_of, set_limit
from flows.workers.patience import PatientClient
from flows.workers.trust import check_files
from flows.workers.waiting import wait_for
from prefloop.config.resources import ResourcesConfig
from prefloop.errors import ConfigError, WorkspaceError
from prefloop.files import atomic_file

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool

ENTRYPOINT = "flows.workers.stage.remote_stage"
OF_ONE_ASKING = {"stage", "commit", "lock", "pipeline", "gpus", "lost_seconds", "force"}
"""Parameters of a flow run that do not say where its result will lie; the key has what matters of these."""
Show = Callable[[str, str], None]


class Pool:
    """Stages on the workers of one Prefect work pool.

    Raises:
        ConfigError: no Prefect server is named; workers do not reach the one that a run starts for itself.
    """

    def __init__(self, supervisor: Supervisor, name: str, resources: ResourcesConfig) -> None:
        if not os.environ.get("PREFECT_API_URL"):
            raise ConfigError(
                f"pool {name} needs a Prefect server that workers reach",
                "`prefect server start`, set PREFECT_API_URL here and for `prefect worker start --pool "
                f"{name}`, and try again",
            )
        self._supervisor = supervisor
        self._name = name
        self._root = supervisor.root
        self._lost_seconds = resources.lost_seconds
        self._ask = PatientClient(resources.server_seconds, self._stopped, supervisor.say)
        self._exchange = open_exchange(self._root)
        self._commit = publish_code(self._root, self._exchange.storage)
        gpus = resources.pools[name].gpus if name in resources.pools else 0
        self._deployment = self._ask(lambda client: ensure_deployment(client, name, gpus))

    def prepare(self) -> None:
        """Resolves the environment where the stages will run; a plan for the pool is made with it."""
        result, _ = self._run(StagePlan("", Action.RUN, ()), lambda _what, line: None)
        self._keep_files(result)

    def refuse_more_gpus(self, stages: Iterable[StagePlan]) -> None:
        """Refuses stages that ask for more GPUs than the pool has, as far as anybody said how many these are.

        Raises:
            ConfigError: names the first such stage.
        """
        has = self._ask(lambda client: limit_of(client, self._name))
        for stage in stages:
            if has is not None and stage.place.gpus > has:
                raise ConfigError(
                    f"stage {stage.name} asks for {stage.place.gpus} GPUs, and pool {self._name} has {has}",
                    "ask for fewer in resources.stages, or say how many it has in "
                    f"resources.pools.{self._name}.gpus",
                )

    def run(self, stage: StagePlan, show: Show) -> StageResult:
        """Runs a stage on a worker; its dvc.lock entry and all but its weights are here afterwards.

        Raises:
            StageFailed: the stage failed there.
            InfrastructureError: what ran it failed, and the stage may be asked for again.
            Stopped: the run was asked to end; the worker's run is cancelled.
        """
        started = time.monotonic()
        outcome = settled(self._root, stage)
        if outcome is None:
            repo = open_repo(self._root)
            push(repo, produced_inputs(repo, stage.name))
            result, give_up = self._run(stage, show)
            outcome = Outcome[result["outcome"]]
            try:
                self._keep_files(result)
                take_over(self._root, stage.name, result["entry"])
            except WorkspaceError:
                give_up()
                raise
            mark_finished(self._root, stage.name)
        return StageResult(stage.name, outcome, time.monotonic() - started)

    def _run(self, stage: StagePlan, show: Show) -> tuple[dict[str, Any], Callable[[], None]]:
        """What a worker made of a stage, or of its own environment where the stage has no name.

        Returns:
            The result, and what to call where it cannot be brought home: one that was made long ago may be
            gone from storage, and is then asked for anew.
        """
        path = self._root / "dvc.lock"
        parameters = {
            "stage": stage.name,
            "commit": self._commit,
            "exchange": self._exchange.place,
            "lock": path.read_text(encoding="utf-8") if path.exists() else "",
            "pipeline": self._supervisor.pipeline,
            "gpus": stage.place.gpus,
            "lost_seconds": self._lost_seconds,
            "force": any(reason.kind == "forced" for reason in stage.reasons),
        }
        what = stage.name or "environment"
        key = self._key(stage.name, parameters)
        number, run, joined = self._ask(
            lambda client: attempt(
                client,
                key,
                lambda full_key: self._begin(client, full_key, parameters, stage),
                self._has_result,
            )
        )
        made_before = joined and run.state is not None and run.state.is_completed()
        if made_before:
            show(what, f"takes what attempt {number} on pool {self._name} made before")
        elif joined:
            show(what, f"joins attempt {number}, which is on pool {self._name} already")
        else:
            show(what, f"waits for a worker of pool {self._name}" + f", attempt {number}" * (number > 1))
        wait_for(
            self._ask, run, what, self._name,
            lost_seconds=self._lost_seconds, stopped=self._stopped, show=show,
        )  # fmt: skip

        def give_up() -> None:
            if made_before:
                self._ask(lambda client: fence(client, run, "what it made could not be brought home"))

        result = self._exchange.read_result(str(run.id))
        if runs := take_home(self._exchange.storage, self._root, str(run.id)):
            show(what, f"what {runs} run(s) tell MLflow came along: the worker could not deliver it")
        return result, give_up

    def _key(self, stage: str, parameters: Mapping[str, Any]) -> str:
        """What tells this asking from others, but not who asks: see `flows.workers.attempts`."""
        where = {name: str(value) for name, value in parameters.items() if name not in OF_ONE_ASKING}
        where["pool"] = self._name
        if parameters["force"] or not stage:
            where["pipeline"] = self._supervisor.pipeline  # it is meant to be done anew
        if not stage:
            return hashlib.sha256(json.dumps([self._commit, where], sort_keys=True).encode()).hexdigest()
        return stage_key(self._root, stage, where)

    def _begin(
        self, client: SyncPrefectClient, key: str, parameters: dict[str, Any], stage: StagePlan
    ) -> FlowRun:
        from prefect.deployments import run_deployment

        run: Any = run_deployment(
            self._deployment,
            parameters=parameters,
            timeout=0,
            idempotency_key=key,
            job_variables=job_variables(client.read_work_pool(self._name), stage.place),
        )
        return cast("FlowRun", run)

    def _has_result(self, run: FlowRun) -> bool:
        return self._exchange.has_result(str(run.id))

    def _stopped(self) -> bool:
        return self._supervisor.signal_number is not None

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


def ensure_deployment(client: SyncPrefectClient, pool: str, gpus: int = 0) -> str:
    """Makes the work pool and the deployment for it where they are missing; returns the deployment's name.

    Args:
        gpus: what the pool's workers have (count); 0 leaves as it is what the server knows of that.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.utilities.callables import parameter_schema

    from flows.workers.stage import remote_stage

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
    if gpus:
        set_limit(client, pool, gpus)
    return f"{remote_stage.name}/{pool}"


def job_variables(pool: WorkPool, place: Place) -> dict[str, Any]:
    """What a stage asks for, as far as the pool's jobs can be given it, as those of Kubernetes can."""
    known = pool.base_job_template.get("variables", {}).get("properties", {})
    asked: dict[str, Any] = {"gpus": place.gpus} if place.gpus else {}
    if place.memory:
        asked |= dict.fromkeys(("memory_request", "memory_limit"), f"{-(-place.memory // 2**20)}Mi")
    return {name: value for name, value in asked.items() if name in known}
