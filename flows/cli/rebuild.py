"""`prefloop rebuild`: make a model again elsewhere, and compare."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.output import say
from prefloop.printable import printable_line

EPILOG = (
    "Examples: prefloop rebuild ppo /tmp/again; prefloop rebuild prefloop-policy@champion ../champion-again; "
    "prefloop rebuild sft /tmp/again --json"
)


def command(
    model: Annotated[str, typer.Argument(help="A model, as `prefloop trace` takes it.")],
    folder: Annotated[Path, typer.Argument(help="A folder that is empty or not there yet.")],
    dirty: Annotated[
        bool, typer.Option("--dirty", help="Go on although the code that made it was never committed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Clone the commit that made a model, run what it needs with its parameters and data, and compare.

    Says whether the files are byte-identical, or what differs. The workspace is only read.

    Ends with exit code 1 where anything differs.
    """
    root = Path(".")
    settings.apply(root)
    from flows.provenance.find import find_making
    from flows.provenance.rebuilding import rebuild
    from flows.provenance.showing import rebuilt_lines
    from tasks.support.lineage import Lineage

    def progress(text: str) -> None:
        print(printable_line(text), file=sys.stderr, flush=True)

    lineage = Lineage(root)
    found = rebuild(lineage, find_making(lineage, model), folder, dirty=dirty, say=progress)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        for line in rebuilt_lines(found.as_json()):
            say(line)
    if not found.identical or found.damaged:
        raise typer.Exit(1)
