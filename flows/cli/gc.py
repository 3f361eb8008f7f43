"""`prefloop gc`: frees what nothing needs any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Examples: prefloop gc; prefloop gc --yes; prefloop gc --only scratch,cache --older-than 7d --yes; "
    "prefloop gc --json"
)


def command(
    only: Annotated[
        str,
        typer.Option(help="Categories, with commas: scratch,cache,exchange,runs,logs,tests; all by default."),
    ] = "",
    older_than: Annotated[
        str, typer.Option(help="What is younger stays, whatever it is: 30d, 12h, 0d.")
    ] = "30d",
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go: the default.")] = False,
    shared_cache: Annotated[
        bool,
        typer.Option(
            "--shared-cache",
            help="Collect in a DVC cache, or an exchange with workers, that others may use, too.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON with every item.")] = False,
) -> None:
    """Say what nothing needs any more, and what stays and why; with --yes, remove it."""
    from flows import settings
    from flows.cli.output import say
    from flows.keeping.collect import Sweep, at_rest
    from flows.keeping.model import choose, seconds_of
    from flows.keeping.show import as_values, lines
    from prefloop.errors import ConfigError

    if yes and dry_run:
        raise ConfigError("--yes and --dry-run contradict each other", "give one of them")
    categories, age = choose(only), seconds_of(older_than)
    root = Path(".")
    settings.apply(root)
    with at_rest(root):
        sweep = Sweep(root, categories, age, shared_cache=shared_cache)
        if yes:
            sweep.remove()
    if as_json:
        print(json.dumps(as_values(sweep.found, removed=yes), indent=2))
        return
    for line in lines(sweep.found, removed=yes):
        say(line)
