"""Scratch folders: what a stage goes on from after a kill, as long as its key is the one it would have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx

from flows.keeping.model import Category, Item, newest, size_of
from flows.leftovers import unfinished
from flows.planning.model import Action
from flows.planning.planner import make_plan, pipeline_stages
from flows.settings import STATE
from prefloop.errors import PrefloopError
from tasks.support.code import all_code
from tasks.support.keys import read_inputs, stage_key
from tasks.support.locks import holder
from tasks.support.workspace import slug, state_folder

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

_DRAFT = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(?:tmp|old)")
"""What prefloop/files.py calls an output that is not whole yet."""


def find_scratch(root: Path, repo: Repo, since: float) -> Iterator[tuple[Path, Item]]:
    """Every scratch folder, and every draft of an output that a kill left; with what becomes of it.

    Args:
        since: what changed later stays (seconds since the epoch).
    """
    stages = {slug(stage.name): stage for stage in pipeline_stages(repo)}
    unsettled: set[str] | None = None
    for label in sorted(path for path in (state_folder() / "scratch").glob("*") if path.is_dir()):
        stage = stages.get(label.name)
        if stage is not None and unsettled is None:
            unsettled = _unsettled(root, repo)
        keys = _keys(root, stage) if stage else set()
        for folder in sorted(path for path in label.iterdir() if path.suffix != ".lock"):
            name = folder.relative_to(state_folder()).as_posix()
            reason = ""
            if holder(folder.with_suffix(".lock")) is not None:
                reason = "a stage works in it"
            elif folder.name in keys:
                reason = "its stage would go on from it"
            elif stage is not None and stage.name in (unsettled or ()):
                reason = "what its stage reads is not up to date: whether it would go on from it shows later"
            elif newest(folder) >= since:
                reason = "too young"
            why = "its stage has another key now" if stage else "there is no such stage"
            size = size_of(folder)
            yield folder, Item(Category.SCRATCH, "folder", name, size, not reason, reason or why)
    yield from _drafts(root, repo, since)


def settled_keys(root: Path, repo: Repo) -> tuple[bool, set[str]]:
    """Whether all that stages read is up to date, and the keys that they have, as far as these are known."""
    keys = set().union(*(_keys(root, stage) for stage in pipeline_stages(repo)))
    return not _unsettled(root, repo), keys


def _keys(root: Path, stage: PipelineStage) -> set[str]:
    """The stage's key here, and in the clones that a run of several seeds keeps: they share the folder."""
    found = set()
    for place in (root, *sorted((root / STATE / "seeds").glob("*"))):
        try:
            if read_inputs(stage.name, place) is not None:
                code = all_code(place).get(stage.name.partition("@")[0])
                found.add(stage_key(stage.name, {}, place, code))
        except (PrefloopError, OSError):
            continue  # nothing to go on with: an input is missing
    return found


def _unsettled(root: Path, repo: Repo) -> set[str]:
    """Stages whose inputs are not what they will be when the stage's turn comes."""
    stages = pipeline_stages(repo)
    try:
        plan = make_plan(repo, interrupted=unfinished(root))
    except PrefloopError:
        return {stage.name for stage in stages}
    changing = {stage.name for stage in plan.stages if stage.action is not Action.SKIP}
    graph = repo.index.graph
    return {
        stage.name
        for stage in stages
        if changing & {getattr(parent, "name", "") for parent in nx.descendants(graph, stage)}
    }


def _drafts(root: Path, repo: Repo, since: float) -> Iterator[tuple[Path, Item]]:
    outs = {Path(str(out.fs_path)) for stage in pipeline_stages(repo) for out in stage.outs}
    for folder in sorted({path.parent for path in outs}):
        names = {path.name for path in outs if path.parent == folder}
        for path in sorted(folder.glob(".*")):
            found = _DRAFT.fullmatch(path.name)
            if found is None or found[1] not in names:
                continue
            young = newest(path) >= since
            reason = "too young" if young else "a stage that was killed left it half-written"
            name = path.relative_to(root.absolute()).as_posix()
            yield path, Item(Category.SCRATCH, "draft", name, size_of(path), not young, reason)
