"""`prefloop promote`: decide which policy is champion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.output import say_all
from prefloop.errors import ConfigError

EPILOG = (
    "Examples: prefloop promote --dry-run; prefloop promote --policy dpo --why 'shorter answers, same score'"
)


def command(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would happen, change nothing.")
    ] = False,
    policy: Annotated[str, typer.Option(help="Promote this policy, whatever the rules say.")] = "",
    why: Annotated[str, typer.Option(help="The reason for --policy; kept with the model.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Apply the rules of section `promote` to the last evaluation and move the registry's aliases.

    Rules pass or fail policy by policy, with reasons. The best one that passes becomes champion, unless the
    present champion scored higher.
    """
    settings.apply(Path("."))
    from tasks.promote import Choice, as_text, promote, read_question

    if bool(policy) != bool(why):
        raise ConfigError("--policy and --why go together", "say which policy, and why")
    record = promote(read_question(Choice(policy, why) if policy else None), dry_run=dry_run)
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        say_all(as_text(record))
