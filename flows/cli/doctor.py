"""`prefloop doctor`: checks the installation, and says what to do."""

from __future__ import annotations

import dataclasses
import json
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.checks.check import Check
from flows.checks.installation import installation
from flows.checks.services import services
from flows.checks.workspace import workspace

EPILOG = "Examples: prefloop doctor; prefloop doctor --json"
COLOURS = {"ok": "green", "note": "yellow", "broken": "red"}


def command(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of lines.")] = False,
) -> None:
    """Check the installation, the workspace and the servers. Exit code 1 when a run would fail."""
    root = Path(".")
    settings.apply(root)
    found = []
    for check in chain(installation(root), workspace(root), services(root)):
        found.append(check)
        if not as_json:
            _show(check)
    broken = sum(check.level == "broken" for check in found)
    if as_json:
        print(
            json.dumps({"ok": not broken, "checks": [dataclasses.asdict(check) for check in found]}, indent=2)
        )
    else:
        notes = sum(check.level == "note" for check in found)
        verdict = f"{broken} broken" if broken else "nothing is broken"
        print(f"\n{verdict}, {notes} worth knowing, of {len(found)} checks")
    raise typer.Exit(int(bool(broken)))


def _show(check: Check) -> None:
    """One line, and the remedy below it; colours on a terminal alone."""
    sign = f"{check.level:<8}"
    if sys.stdout.isatty():
        sign = typer.style(sign, fg=COLOURS[check.level], bold=check.level == "broken")
    print(f"{sign}{check.name:<16}{check.found}", flush=True)
    if check.remedy:
        print(f"{'':<24}-> {check.remedy}", flush=True)
