"""Computes a plan: walks DVC's own graph and compares what each stage read last time with what is there."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from dvc.stage import PipelineStage

from flows.history import past_cost, past_seconds
from flows.parameter_files import parse_once
from flows.planning.absent import Absent
from flows.planning.code import CodeNow
from flows.planning.contents import Content, Forecast, present, recoverable
from flows.planning.expectations import expected_outputs
from flows.planning.model import Action, Plan, Reason, StagePlan
from flows.planning.run_cache import find_outputs
from prefloop.config.parse import nearest
from prefloop.errors import ConfigError, DataError, PrefloopError
from tasks.support.code import CODE
from tasks.support.workspace import slug

if TYPE_CHECKING:
    from dvc.output import Output


_ONE_AT_A_TIME = threading.Lock()
"""DVC's schema of dvc.yaml is for one thread: of several, now and then one finds a sound file wrong."""


def open_repo(root: Path) -> Repo:
    """Opens the DVC repository at `root`.

    Raises:
        ConfigError: no DVC repository, or a dvc.yaml that cannot be read.
    """
    from dvc.exceptions import DvcException, NotDvcRepoError

    parse_once()
    try:
        with _ONE_AT_A_TIME:
            repo = Repo(str(root))
            repo.index.graph  # noqa: B018  (reads dvc.yaml and builds the graph now, not somewhere later)
    except NotDvcRepoError as error:
        raise ConfigError(
            f"{root} is no DVC repository", "run in the root of the project, or `dvc init`"
        ) from error
    except DvcException as error:
        raise ConfigError(
            f"dvc.yaml cannot be used: {error}", "mend it, or its parameters in params.yaml"
        ) from error
    return repo


def pipeline_stages(repo: Repo) -> list[PipelineStage]:
    """Every stage of dvc.yaml, parents first; data tracked by `dvc add` is no stage."""
    order = list(nx.dfs_postorder_nodes(repo.index.graph))
    return [stage for stage in order if isinstance(stage, PipelineStage)]


def make_plan(
    repo: Repo,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    interrupted: Iterable[str] = (),
) -> Plan:
    """Says for each stage whether it will run, be restored or be skipped, and why.

    Args:
        repo: an open repository; nothing in it is changed.
        targets: stages asked for ("sft", "evaluate@ppo", "evaluate" for all its parts, a policy's name);
            empty takes all.
        force: run the targets (or every stage) although nothing changed.
        interrupted: stages whose last run was cut off: what they left may be overwritten.

    Raises:
        ConfigError: an unknown target.
        DataError: a file that a stage reads is missing, and no stage writes it.
    """
    stages = pipeline_stages(repo)
    asked = select(stages, targets)
    wanted = _with_ancestors(repo, stages, asked)
    forecast, code, absent = Forecast(repo), CodeNow(Path(repo.root_dir)), Absent(repo)
    plans = []
    for stage in stages:
        if stage.name not in wanted or is_preparation(stage):
            continue
        forced = force and stage.name in asked
        cut_off = stage.name in set(interrupted)
        plans.append(_plan_stage(repo, stage, forecast, code, absent, forced, cut_off))
    return Plan(tuple(plans))


def is_preparation(stage: PipelineStage) -> bool:
    """True for a stage that always runs and reads parameters alone: it runs before a plan is made."""
    return bool(stage.always_changed) and all(isinstance(dep, ParamsDependency) for dep in stage.deps)


def select(stages: Sequence[PipelineStage], targets: Sequence[str]) -> set[str]:
    """Names of the stages that the targets mean; a name before an @ means all its parts, a policy's name
    the stage that trains it."""
    names = [stage.name for stage in stages]
    if not targets:
        return set(names)
    chosen: set[str] = set()
    for target in targets:
        matches = {name for name in names if name == target or name.split("@")[0] == target}
        matches = matches or {name for name in names if slug(name) == target}
        if not matches:
            known = {*names, *(n.split("@")[0] for n in names), *map(slug, names)}
            raise ConfigError(f"there is no stage {target}", nearest(target, known))
        chosen |= matches
    return chosen


def _with_ancestors(repo: Repo, stages: Sequence[PipelineStage], asked: set[str]) -> set[str]:
    graph = repo.index.graph
    wanted = set(asked)
    for stage in stages:
        if stage.name in asked:
            above = nx.descendants(graph, stage)  # edges point to parents
            wanted |= {parent.name for parent in above if isinstance(parent, PipelineStage)}
    return wanted


def _plan_stage(
    repo: Repo,
    stage: PipelineStage,
    forecast: Forecast,
    code: CodeNow,
    absent: Absent,
    forced: bool,
    interrupted: bool,
) -> StagePlan:
    known = any(dep.hash_info for dep in stage.deps) or any(out.hash_info for out in stage.outs)
    inputs: dict[str, Content] = {}
    expected: list[Reason] = []
    reasons: list[Reason] = [Reason("forced", stage.name)] if forced else []
    upstream: list[Reason] = []
    if stage.cmd_changed and known:
        reasons.append(Reason("command", stage.name))
    for dep in stage.deps:
        if isinstance(dep, ParamsDependency):
            is_code = dep.def_path == CODE
            reasons += code.reasons(stage.name, dep) if is_code else _parameter_reasons(dep)
            continue
        content, waits_for = forecast.of(dep)
        if waits_for:
            upstream.append(Reason("upstream", f"{_relative(repo, dep)} ({waits_for})"))
        elif content is None:
            raise DataError(
                f"{_relative(repo, dep)} is missing; stage {stage.name} reads it, no stage writes it",
                "restore it from git, or `dvc pull` if DVC tracks it",
            )
        else:
            inputs[dep.fs_path] = content
            if forecast.is_expected(dep):
                expected.append(Reason("expected", _relative(repo, dep)))
            if content[0] != dep.hash_info:
                word = "changed" if dep.hash_info else "is new"
                reasons.append(Reason("data", _relative(repo, dep), None, word))
    if not known:
        reasons = [
            *(reason for reason in reasons if reason.kind == "forced"),
            Reason("new", stage.name),
        ]
    edited, output_reasons, recorded = _outputs(repo, stage, absent, interrupted)
    outputs = recorded

    action = Action.SKIP
    if upstream:
        reasons = reasons or output_reasons
        action = Action.RUN if reasons else Action.MAYBE
    elif reasons or output_reasons:
        found = None
        if not forced:
            found = (None if reasons else _kept(stage, absent)) or find_outputs(repo, stage, inputs, code)
        action = Action.RESTORE if found else Action.RUN
        outputs = found or {}
        reasons = reasons or output_reasons
    elif expected:
        action, reasons = Action.STAYS, expected
    kept = recorded if action is Action.STAYS else {}
    if action in (Action.RUN, Action.MAYBE):
        kept = _expected_outputs(repo, stage, reasons, recorded)
        outputs = {}
    for out in stage.outs:
        path = out.fs_path
        forecast.record(stage.name, path, outputs.get(path) or kept.get(path), expected=path in kept)
    return StagePlan(
        name=stage.name,
        action=action,
        parents=_parents(repo, stage),
        reasons=(*reasons, *(upstream if known else ())) if action is not Action.SKIP else (),
        seconds=past_seconds(Path(repo.root_dir), stage.name),
        cost=past_cost(Path(repo.root_dir), stage.name),
        edited=tuple(edited),
    )


def _expected_outputs(
    repo: Repo, stage: PipelineStage, reasons: Sequence[Reason], outputs: Mapping[str, Content]
) -> dict[str, Content]:
    """Those of the outputs that the stage will write again as they are."""
    params = {
        key: value
        for dep in stage.deps
        if isinstance(dep, ParamsDependency) and dep.def_path == dep.DEFAULT_PARAMS_FILE
        for key, value in dep.read_params().items()
    }
    names = expected_outputs(Path(repo.root_dir), stage.name, reasons, params)
    return {path: content for path, content in outputs.items() if _under(repo, path) in names}


def _kept(stage: PipelineStage, absent: Absent) -> dict[str, Content] | None:
    """The outputs that dvc.lock names, when DVC's cache or the workers' remote holds each: nothing but a
    checkout is needed."""
    if all(out.hash_info and (not out.changed_cache() or absent.held(out)) for out in stage.outs):
        return {out.fs_path: (out.hash_info, out.meta) for out in stage.outs}
    return None


def _outputs(
    repo: Repo, stage: PipelineStage, absent: Absent, interrupted: bool
) -> tuple[list[str], list[Reason], dict[str, Content]]:
    """Hand-edited outputs, reasons that lie in the outputs, and their contents as dvc.lock has them."""
    edited: list[str] = []
    reasons: list[Reason] = []
    contents: dict[str, Content] = {}
    for out in stage.outs:
        here, name = present(out), _relative(repo, out)
        if here is None:
            if not absent.held(out):
                reasons.append(Reason("output", name, None, "missing"))
        elif not out.hash_info:
            reasons.append(Reason("output", name, None, "not recorded in dvc.lock"))
        elif here[0] != out.hash_info:
            reasons.append(Reason("output", name, None, "not what dvc.lock says"))
        elif out.use_cache and out.changed_cache() and not absent.held(out):
            reasons.append(Reason("output", name, None, "no longer in DVC's cache"))
        if out.hash_info:
            contents[out.fs_path] = (out.hash_info, out.meta)
        differs = here is not None and here[0] != out.hash_info
        if differs and out.use_cache and not interrupted and here and not recoverable(out, here):
            edited.append(name)
    return edited, reasons, contents


def _parameter_reasons(dep: ParamsDependency) -> list[Reason]:
    """Parameters that differ from those of the last run, leaf by leaf."""
    kind = "parameter" if Path(dep.fs_path).suffix in (".yaml", ".yml") else "environment"
    old = dep.hash_info.value if dep.hash_info else None
    new = dep.read_params()
    missing = [key for key in dep.params if key not in new]
    if missing or (not new and not dep.exists):
        raise PrefloopError(
            f"{', '.join(missing) or 'everything'} is missing from {dep.def_path}", "add what is missing"
        )
    if not isinstance(old, Mapping):
        return []
    before, after = flatten(old), flatten(new)
    return [
        Reason(kind, key, before.get(key), after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _parents(repo: Repo, stage: PipelineStage) -> tuple[str, ...]:
    parents = repo.index.graph.successors(stage)
    return tuple(sorted(p.name for p in parents if isinstance(p, PipelineStage) and not is_preparation(p)))


def _relative(repo: Repo, item: Output) -> str:
    return _under(repo, item.fs_path)


def _under(repo: Repo, path: str) -> str:
    return Path(path).relative_to(repo.root_dir).as_posix()
