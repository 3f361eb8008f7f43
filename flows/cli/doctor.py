"""`prefloop doctor`: checks the installation, and says what to do."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from flows import settings

EPILOG = "Examples: prefloop doctor; prefloop doctor --json"
SIGNS = {"ok": "ok", "note": "note", "broken": "BROKEN"}
COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}


def command(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Check the installation, the workspace and the servers. Exit code 1 when a run would fail."""
    root = Path(".")
    settings.apply(root)
    from flows.checks.check import Check
    from flows.checks.installation import installation
    from flows.checks.services import services
    from flows.checks.workspace import workspace

    found: list[Check] = []
    for checks in (installation(root), workspace(root), services(root)):
        for check in checks:
            found.append(check)
            if not as_json:
                _show(check)
    broken = sum(check.level == "broken" for check in found)
    if as_json:
        print(
            json.dumps({"ok": not broken, "checks": [dataclasses.asdict(check) for check in found]}, indent=2)
        )
    else:
        print(_verdict(check.level for check in found))
    raise typer.Exit(int(bool(broken)))


def _show(check: object) -> None:
    """One line, and the remedy below it; colours on a terminal alone."""
    from flows.checks.check import Check

    assert isinstance(check, Check)
    sign = f"{SIGNS[check.level]:<7}"
    if sys.stdout.isatty():
        sign = typer.style(sign, fg=COLOURS[check.level])
    print(f"{sign}{check.name:<15} {check.found}", flush=True)
    if check.remedy:
        print(f"{'':<23}-> {check.remedy}", flush=True)


def _verdict(levels: Iterable[str]) -> str:
    found = list(levels)
    broken, notes = found.count("broken"), found.count("note")
    if broken:
        return f"\n{broken} broken, {notes} worth knowing, of {len(found)} checks"
    return f"\nnothing is broken: {len(found) - notes} ok, {notes} worth knowing"
