"""Where the stages of a run go, decided before anything is asked of a worker or a GPU.

Skips follow from an environment: the device, precision and versions that stages compute with. That of a
pool's workers is remembered from what they last did, so that a run with nothing to do needs no worker; it is
asked for where it is not known, or where `compute` changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cores import ENVIRONMENT, device_of
from flows.planning.model import Place, Plan
from flows.planning.planner import pipeline_stages
from flows.settings import STATE
from prefloop.config.read import read_section, read_yaml
from prefloop.config.resources import SECTION, ResourcesConfig
from prefloop.errors import ConfigError, DataError
from prefloop.files import read_json, write_json

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

NOT_TRAINING = ("evaluate", "looks")
"""Stages with models whose work `compute.processes` does not divide."""


@dataclass(frozen=True)
class Placement:
    """Where each stage runs.

    Attributes:
        pools: stage -> the pool that it goes to; the others run here.
        resources: what stages ask for.
        fingerprinted: stages that compute as the environment says, and so have to find the same one.
    """

    pools: Mapping[str, str]
    resources: ResourcesConfig
    fingerprinted: frozenset[str]

    @property
    def environment_pools(self) -> list[str]:
        """Pools whose environment stages read, in the order of the stages."""
        return list(dict.fromkeys(pool for stage, pool in self.pools.items() if stage in self.fingerprinted))

    @property
    def computes_here(self) -> list[str]:
        """Those of them that run on this machine."""
        return sorted(self.fingerprinted - self.pools.keys())

    def place(self, root: Path, stage: str, *, known: bool = True) -> Place:
        """Where a stage runs, and what it asks for there.

        GPUs are asked for only where stages compute on GPUs: on machines without, all run on processors. A
        stage that shares its training among processes has a GPU for each of these.

        Args:
            known: the environment in the workspace is the one that stages will find.
        """
        asked, pool = self.resources.of(stage), self.pools.get(stage, "")
        gpus = asked.gpu if device_of(root) == "cuda" or (pool and not known) else 0
        if gpus and stage in self.fingerprinted and stage.partition("@")[0] not in NOT_TRAINING:
            gpus = max(gpus, _processes(root))
        return Place(pool, gpus, asked.memory_bytes)


def decide(root: Path, repo: Repo, pool: str = "") -> Placement:
    """Reads what params.yaml says of places.

    Args:
        pool: takes every stage that computes with models; empty does as `resources.place` says.

    Raises:
        ConfigError: a stage that has to be on this machine is sent away.
    """
    resources = read_section(SECTION, ResourcesConfig, root / "params.yaml")
    stages = pipeline_stages(repo)
    if pool:
        pools = {stage.name: pool for stage in stages if computes_with_models(stage)}
    elif resources.place == "pools":
        pools = {stage.name: named for stage in stages if (named := resources.of(stage.name).pool)}
    else:
        pools = {}
    return Placement(pools, resources, frozenset(stage.name for stage in stages if _is_fingerprinted(stage)))


def computes_with_models(stage: PipelineStage) -> bool:
    """True for a stage that reads or writes under models/."""
    return any(str(item.def_path).startswith("models/") for item in (*stage.deps, *stage.outs))


def placed(plan: Plan, placement: Placement, root: Path, *, known: bool = True) -> Plan:
    """The plan, with where each of its stages would run; see `Placement.place`."""
    return Plan(
        tuple(replace(stage, place=placement.place(root, stage.name, known=known)) for stage in plan.stages)
    )


def remembered(root: Path, pool: str) -> dict[str, Any] | None:
    """The environment of a pool's workers, as far as it is known; None where it has to be asked for."""
    try:
        value = read_json(_memory(root, pool))
    except (DataError, OSError):
        return None
    return value["environment"] if value.get("compute") == _compute(root) else None


def remember(root: Path, pool: str, environment: Mapping[str, Any]) -> None:
    """Keeps what a pool's worker computed with."""
    write_json(_memory(root, pool), {"compute": _compute(root), "environment": dict(environment)})


def use_environment(root: Path, placement: Placement, ask: Callable[[str], Mapping[str, Any]] | None) -> bool:
    """Writes the environment that stages will find into the workspace, where it is that of pools.

    Args:
        ask: gives a pool's environment where it is not remembered; None asks nobody.

    Returns:
        False where it is not known and nobody was asked.

    Raises:
        ConfigError: stages of one run would compute in environments that differ.
    """
    here = read_json(root / ENVIRONMENT) if placement.environment_pools and placement.computes_here else None
    found: dict[str, Mapping[str, Any]] = {}
    for pool in placement.environment_pools:
        known: Mapping[str, Any] | None = remembered(root, pool)
        if known is None and ask is not None:
            known = ask(pool)
            remember(root, pool, known)
        if known is None:
            return False
        found[f"pool {pool}"] = known
    if not found:
        return True
    if here is not None:
        found["this machine"] = here
    _refuse_differences(found, placement.computes_here)
    write_json(root / ENVIRONMENT, dict(next(iter(found.values()))))
    return True


def _refuse_differences(found: Mapping[str, Mapping[str, Any]], here: Iterable[str]) -> None:
    """One fingerprint a run: a model is promised to be the same wherever it is made, if that is the same."""
    (first, wanted), *others = found.items()
    for where, environment in others:
        differing = sorted(key for key in {*wanted, *environment} if wanted.get(key) != environment.get(key))
        if differing:
            key = differing[0]
            stages = f" (stages {', '.join(here)} run here)" if where == "this machine" else ""
            raise ConfigError(
                f"stages of one run would compute in environments that differ: {key} is {wanted.get(key)} on "
                f"{first} and {environment.get(key)} on {where}{stages}",
                "send them to one pool in resources.stages, or make the machines equal",
            )


def _is_fingerprinted(stage: PipelineStage) -> bool:
    """True for a stage that computes as the environment says; the report only shows what that says."""
    return computes_with_models(stage) and any(str(dep.def_path) == ENVIRONMENT for dep in stage.deps)


def _processes(root: Path) -> int:
    """Processes that share a training, by the environment that stages will find."""
    try:
        return int(read_json(root / ENVIRONMENT).get("processes", 1))
    except (DataError, OSError):
        return 1


def _compute(root: Path) -> Any:
    return read_yaml(root / "params.yaml").get("compute")


def _memory(root: Path, pool: str) -> Path:
    return root / STATE / "pools" / f"{pool}.json"
