"""What has to be right before a plan can be made: the environment resolved, text sources imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import credentials
from flows.placement import Placement, decide, use_environment
from flows.planning.planner import is_preparation, pipeline_stages
from flows.settings import STATE, child_environment
from flows.stage_run import StageFailed
from flows.supervision import Supervisor
from prefloop.data.importing import matching_files
from prefloop.files import write_json
from tasks.support.code import CODE, write_code

if TYPE_CHECKING:
    from dvc.repo import Repo

Show = Callable[[str, str], None]


def run_preparation(supervisor: Supervisor, repo: Repo, show: Show) -> None:
    """Runs the stages that always run and depend on nothing, such as `environment`; their outputs are inputs.

    Raises:
        StageFailed: one of them failed.
    """
    for stage in pipeline_stages(repo):
        if is_preparation(stage):
            for out in stage.outs:
                Path(out.fs_path).parent.mkdir(parents=True, exist_ok=True)
            run_command(supervisor, stage.name, str(stage.cmd), show, without=_needless(str(stage.cmd)))


def prepare(
    supervisor: Supervisor,
    repo: Repo,
    placement: Placement,
    ask: Callable[[str], Mapping[str, Any]],
    show: Show,
) -> None:
    """Sees to the environment that stages will find, be it this machine's or that of pools' workers.

    Args:
        ask: gives the environment of a pool's workers.

    Raises:
        StageFailed: this machine's could not be resolved.
        ConfigError: stages would compute in environments that differ.
    """
    if placement.environment_pools and not placement.computes_here:
        _write_code(supervisor.root)  # this machine need not be able to compute with models
    else:
        run_preparation(supervisor, repo, show)
    use_environment(supervisor.root, placement, ask)


def refresh(root: Path, repo: Repo, placement: Placement | None = None) -> bool:
    """The same for a command that only looks: outside any run, without taking the workspace or asking a pool.

    Args:
        placement: where stages go; None reads params.yaml.

    Returns:
        False where the environment of a pool is not known yet.

    Raises:
        StageFailed: one of them failed.
        ConfigError: stages would compute in environments that differ.
    """
    placement = placement or decide(root, repo)
    if placement.environment_pools and not placement.computes_here and use_environment(root, placement, None):
        _write_code(root)
        return True
    _refresh(root, repo)
    return use_environment(root, placement, None)


def _write_code(root: Path) -> None:
    (root / CODE).parent.mkdir(parents=True, exist_ok=True)
    write_code(root)


def _refresh(root: Path, repo: Repo) -> None:
    for stage in pipeline_stages(repo):
        if is_preparation(stage):
            done = subprocess.run(
                _arguments(str(stage.cmd)),
                cwd=root,
                env={k: v for k, v in child_environment().items() if k not in _needless(str(stage.cmd))},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise StageFailed(stage.name, done.returncode, STATE / "logs", done.stderr.splitlines()[-5:])


def import_text_sources(supervisor: Supervisor, patterns: Sequence[str], show: Show) -> None:
    """Imports the files that `ingest.text` names as versions under data/sources/, once a state of them.

    Patterns that match nothing are passed over: such files are used where they are present.

    Raises:
        StageFailed: a file cannot be imported.
    """
    root = supervisor.root
    memory = root / STATE / "text-sources.json"
    seen = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else {}
    for pattern in patterns:
        files = [str(file) for file in matching_files(pattern, root)]
        state = [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files]
        if not files or seen.get(pattern) == state:
            continue
        command = ["python", "-m", "flows.cli.main", "data", "import", "text", *files]
        run_command(supervisor, "ingest.text", shlex.join(command), show)
        seen[pattern] = state
        write_json(memory, seen)


def run_command(
    supervisor: Supervisor, what: str, command: str, show: Show, *, without: Sequence[str] = ()
) -> None:
    """Runs `python -m ...` with this interpreter, or another command through the shell, outside DVC.

    Args:
        without: environment variables that it does not get.

    Raises:
        StageFailed: it ended with another exit code than 0.
    """
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        show(what, line)

    status = supervisor.run(_arguments(command), what, on_line, without=without)
    if status:
        raise StageFailed(what, status, STATE / "logs", lines[-5:])


def _needless(command: str) -> tuple[str, ...]:
    """Credentials that a command gets not: one of prefloop's own needs none here, another keeps its own."""
    return credentials.ALL if command.startswith("python -m tasks.") else credentials.ORDERS


def _arguments(command: str) -> list[str]:
    words = shlex.split(command)
    return [sys.executable, *words[1:]] if words[:1] == ["python"] else ["/bin/sh", "-c", command]
