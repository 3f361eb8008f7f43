"""`prefloop accept`: keeps a stage's results although its code changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = 'Example: prefloop accept sft --why "renamed a variable; no result changes"'


def command(
    stage: Annotated[str, typer.Argument(help="The stage whose results stay.")],
    why: Annotated[str, typer.Option(help="Why the edit changes no result; kept in accepted.jsonl.")],
) -> None:
    """Say that a code edit changes no result: `dvc commit`, with the reason kept in accepted.jsonl."""
    from flows import settings
    from flows.acceptance import accept
    from flows.cli.output import say

    settings.apply(Path("."))
    for name, differences in accept(Path("."), stage, why).items():
        say(f"{name}: its results stay ({', '.join(differences)}); commit dvc.lock and accepted.jsonl")
