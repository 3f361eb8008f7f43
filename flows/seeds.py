"""`prefloop run --seeds N`: the pipeline once a seed, each in a clone; intervals over seeds."""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flows import settings
from flows.parameters import set_parameter
from flows.run import Request, new_pipeline_id
from flows.settings import STATE
from flows.stage_run import StageFailed
from flows.summary import COLUMNS, align, cell, evaluation
from flows.supervision import Stopped, supervise
from flows.terminal import Terminal
from flows.workers.exchange import dvc, run
from prefloop.config.read import read_seed
from prefloop.files import write_json

RESULT = Path("metrics/seeds.json")
# Student's t at 0.975 for 1, 2, ... degrees of freedom; 1.96 beyond.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)


def run_seeds(root: Path, count: int, request: Request, terminal: Terminal, *, as_json: bool) -> int:
    """Runs seeds s, s+1, ... one after the other and writes metrics/seeds.json.

    Clones share the workspace's DVC cache and tracking; a seed that ran before is restored from the cache.

    Returns:
        0, or the exit code of the run that failed or was stopped; finished seeds are kept.
    """
    settings.apply(root)
    first = read_seed(root / "params.yaml")
    seeds = list(range(first, first + count))
    evaluations: dict[int, dict[str, Any]] = {}
    with supervise(root, new_pipeline_id(), terminal.say) as supervisor:
        for seed in seeds:
            clone = clone_workspace(root, root / STATE / "seeds" / f"seed-{seed}")
            set_parameter(clone / "params.yaml", "seed", seed)
            command = [sys.executable, "-m", "flows.cli.main", "run", *request.targets]
            command += ["--jobs", str(request.jobs), *(["--force"] if request.force else [])]
            shared = {"PREFLOOP_STATE": str((root / STATE).absolute())}
            try:
                status = supervisor.run(
                    command,
                    f"seed {seed}",
                    partial(terminal.line, f"seed {seed}"),
                    folder=clone,
                    extra=shared,
                )
            except Stopped:
                return 128 + (supervisor.signal_number or 0)
            if status:
                raise StageFailed(
                    f"seed {seed}", status, STATE / "seeds" / f"seed-{seed}" / STATE / "logs", []
                )
            evaluations[seed] = evaluation(clone)
    summary = over_seeds(evaluations)
    write_json(root / RESULT, summary)
    if as_json:
        print(json.dumps(summary, indent=2))
    else:
        for line in [*table(summary), "", f"intervals over {count} seeds; figures: {RESULT}"]:
            print(line)
    return 0


def clone_workspace(root: Path, clone: Path) -> Path:
    """Makes or refreshes a clone with the working tree as it is, uncommitted edits included."""
    if not (clone / ".git").exists():
        shutil.rmtree(clone, ignore_errors=True)
        clone.parent.mkdir(parents=True, exist_ok=True)
        run(root, ["git", "clone", "--quiet", "--shared", str(root.absolute()), str(clone)])
    head = run(root, ["git", "rev-parse", "HEAD"]).strip()
    run(clone, ["git", "fetch", "--quiet", str(root.absolute()), head])
    run(clone, ["git", "checkout", "--quiet", "--force", "--detach", head])
    run(clone, ["git", "clean", "--quiet", "-fd"])
    for path in _working_files(root):
        if (root / path).is_file():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / path, clone / path)
        else:
            (clone / path).unlink(missing_ok=True)
    _share_cache(root, clone)
    for pointer in sorted((clone / "data/sources").glob("*.dvc")):
        dvc(clone, "checkout", "--force", str(pointer.relative_to(clone)))
    return clone


def over_seeds(evaluations: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation and 95 % t-interval over seeds of each policy's figures.

    Args:
        evaluations: seed -> content of metrics/evaluate.json.
    """
    seeds = sorted(evaluations)
    first = evaluations[seeds[0]].get("policies", {})
    policies: dict[str, dict[str, Any]] = {}
    for policy in first:
        policies[policy] = {}
        for _, key in COLUMNS:
            values = [_mean(evaluations[seed].get("policies", {}).get(policy, {}).get(key)) for seed in seeds]
            known = [value for value in values if value is not None]
            if len(known) == len(seeds):
                policies[policy][key] = {"values": known, **interval(known)}
    return {"seeds": seeds, "policies": policies}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (Bessel's) and 95 % t-interval of the mean."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return {"mean": mean, "sd": None, "ci95": None}
    sd, freedom = statistics.stdev(values), len(values) - 1
    half = (T_975[freedom - 1] if freedom <= len(T_975) else 1.96) * sd / math.sqrt(len(values))
    return {"mean": mean, "sd": sd, "ci95": [mean - half, mean + half]}


def table(summary: Mapping[str, Any]) -> list[str]:
    """The policies side by side, intervals over seeds."""
    rows = [["policy", *(title for title, _ in COLUMNS)]]
    for policy, figures in summary["policies"].items():
        rows.append([policy, *(cell(figures.get(key)) for _, key in COLUMNS)])
    return align(rows)


def _mean(value: Any) -> float | None:
    inner = value.get("mean") if isinstance(value, Mapping) else value
    return float(inner) if isinstance(inner, (int, float)) else None


def _working_files(root: Path) -> list[str]:
    """Files that differ from HEAD: changed, removed, or untracked and not ignored."""
    changed = run(root, ["git", "diff", "--name-only", "-z", "HEAD"]).split("\0")
    new = run(root, ["git", "ls-files", "--others", "--exclude-standard", "-z"]).split("\0")
    return [path for path in {*changed, *new} if path]


def _share_cache(root: Path, clone: Path) -> None:
    local = root / ".dvc/config.local"
    if local.exists():
        shutil.copy2(local, clone / ".dvc/config.local")
    cache = dvc(root, "cache", "dir").strip()
    dvc(clone, "config", "--local", "cache.dir", os.path.normpath(root.absolute() / cache))
