"""`prefloop compare`: what differed between runs, and which is better."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer

from flows.cli.output import say
from flows.comparison import Comparison, compare
from prefloop.errors import ConfigError
from prefloop.printable import printable_line

EPILOG = "Examples: prefloop compare previous latest; prefloop compare run-20250102 latest --json"
WIDEST = 40


def command(
    runs: Annotated[list[str], typer.Argument(help="Two or more: ids, their beginnings, latest, previous.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Say what differed between pipeline runs (parameters, data, code, environment) and which is better."""
    from tasks.support.records import find, local_records

    if len(runs) < 2:
        raise ConfigError("compare needs two runs or more", "for example: prefloop compare previous latest")
    records = local_records()
    found = compare([find(name, records) for name in runs])
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    for title, header, rows in tables(found):
        _show(title, header, rows)
    for sentence in found.verdict:
        say(sentence)


def tables(found: Comparison) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of what differed and of the figures."""
    what = [[row.group, row.name, *map(_text, row.values)] for row in found.differences]
    figures = [
        [row.policy, row.figure, *map(_text, row.values), "" if row.change is None else f"{row.change:+.4g}"]
        for row in found.figures
    ]
    return [
        ("What differed", ["", "name", *found.runs], what or [["", "nothing", *("" for _ in found.runs)]]),
        ("Figures", ["policy", "figure", *found.runs, "change"], figures),
    ]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def _show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on a terminal; tab-separated columns elsewhere."""
    if not rows:
        return
    if not sys.stdout.isatty():
        print(title)
        for row in [header, *rows]:
            print("\t".join(map(printable_line, row)))
        print()
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*map(printable_line, header), title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(printable_line, row))
    Console(markup=False, emoji=False, highlight=False).print(table)  # [brackets] of a name are its own
