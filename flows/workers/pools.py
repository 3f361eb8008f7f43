"""The work pools that a run sends stages to: opened when the first of them is needed, not before."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from flows.cores import ENVIRONMENT
from flows.placement import remember, remembered
from flows.planning.model import Action, StagePlan
from flows.retries import Patience, persist
from flows.server import refuse_silent_server
from flows.stage_run import StageResult
from flows.supervision import Supervisor
from flows.workers.pool import Pool
from prefloop.config.resources import ResourcesConfig
from prefloop.files import read_json


class Pools:
    """The pools of one run, by name."""

    def __init__(self, supervisor: Supervisor, resources: ResourcesConfig) -> None:
        self._supervisor, self._resources = supervisor, resources
        self._pools: dict[str, Pool] = {}
        self._lock = threading.Lock()

    def open(self, stages: Iterable[StagePlan]) -> None:
        """Opens the pools that stages go to, and refuses what they cannot hold, before anything runs.

        Raises:
            ConfigError: no server that workers reach, or a stage that asks for more GPUs than its pool has.
            WorkspaceError: the server does not answer.
        """
        going = [stage for stage in stages if stage.place.pool and stage.action is not Action.SKIP]
        for name in dict.fromkeys(stage.place.pool for stage in going):
            self._pool(name).refuse_more_gpus([stage for stage in going if stage.place.pool == name])

    def environment(self, name: str) -> dict[str, Any]:
        """What the workers of a pool compute with; one of them is asked, which needs no GPU of it."""
        self._supervisor.say(f"pool {name}: asking a worker what it computes with")
        persist(
            "environment",
            self._pool(name).prepare,
            Patience(self._resources.retries, self._resources.retry_seconds),
            elsewhere=True,
            stopped=lambda: self._supervisor.signal_number is not None,
            say=self._supervisor.say,
        )
        return dict(read_json(self._supervisor.root / ENVIRONMENT))

    def run(self, stage: StagePlan, show: Callable[[str, str], None]) -> StageResult:
        """Runs a stage on its pool; see `Pool.run`."""
        root, name = self._supervisor.root, stage.place.pool
        planned = remembered(root, name)
        result = self._pool(name).run(stage, show)
        found = dict(read_json(root / ENVIRONMENT))
        if planned is not None and found != planned:
            remember(root, name, found)
            changed = sorted(key for key in {*found, *planned} if found.get(key) != planned.get(key))
            self._supervisor.say(
                f"pool {name}: its workers changed ({', '.join(changed)}); run again afterwards: that finds "
                "what it touches"
            )
        return result

    def _pool(self, name: str) -> Pool:
        with self._lock:
            if name not in self._pools:
                if not self._pools:
                    refuse_silent_server()
                self._pools[name] = Pool(self._supervisor, name, self._resources)
            return self._pools[name]
