"""`prefloop run`: runs the pipeline, or some of its stages."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

EPILOG = (
    "Examples: prefloop run; prefloop run evaluate; prefloop run --set ppo.kl_coef=0.1; "
    "prefloop run --preset hh-small; prefloop run --seeds 3; prefloop run sft --force"
)


def command(
    stages: Annotated[
        list[str] | None, typer.Argument(help="Stages, with all they need; all by default.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Write presets/NAME.yaml into params.yaml first.")] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Write a parameter into params.yaml first: sft.epochs=2."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            help="Run the named stages although nothing changed; hand-edited outputs are moved away."
        ),
    ] = False,
    seeds: Annotated[
        int, typer.Option(help="Run with this many seeds, each in a clone, and give intervals.")
    ] = 1,
    pool: Annotated[
        str, typer.Option("--on", help="Prefect work pool whose workers run the training stages.")
    ] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Stages at once.")] = 2,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Do not ask before params.yaml is changed.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON on standard output; progress on standard error.")
    ] = False,
) -> None:
    """Run what changed since the last run, and what depends on it; end with a table of the policies."""
    from flows.cli.output import say_all
    from flows.parameters import apply_changes
    from flows.run import Request, execute
    from flows.summary import as_values, summary_lines
    from flows.terminal import Terminal

    root, terminal = Path("."), Terminal()
    apply_changes(
        root, preset, changes or [], ask=not yes and sys.stdin.isatty() and not as_json, say=terminal.say
    )
    if seeds > 1:
        from flows.seeds import run_seeds

        raise typer.Exit(
            run_seeds(root, seeds, Request(tuple(stages or ()), force, jobs), terminal, as_json=as_json)
        )
    ended = execute(root, Request(tuple(stages or ()), force, jobs, pool), terminal)
    if as_json:
        print(json.dumps(as_values(root, ended), indent=2))
    else:
        for line in summary_lines(root, ended):
            say_all(line)  # a failure's words are several lines
    leave(ended.exit_code)


def leave(code: int) -> NoReturn:
    """Ends this process without Prefect's threads, which try for minutes to reach a server that is gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
