"""`prefloop data`: bring in your own data, and see what is there."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import settings
from flows.cli.output import say
from flows.tracking import pointer_of, track
from prefloop.data.importing import Version, formats, import_files, versions
from prefloop.errors import ConfigError

EPILOG = "Examples: prefloop data import hh-rlhf *.jsonl.gz; prefloop data formats; prefloop data list"

app = typer.Typer(
    help="Bring in your own data: each import is a version under data/sources/.",
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command(
    "import",
    epilog="Examples: prefloop data import hh-rlhf *.jsonl.gz; prefloop data import table ratings.csv "
    "--option prompt=question --option a=left --option b=right --option winner=better",
)
def import_(
    format: Annotated[str, typer.Argument(help="Format of the files; `prefloop data formats` lists them.")],
    files: Annotated[list[Path], typer.Argument(help="Files, compressed (gz, zst) or not.")],
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for the format, such as a column; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Convert files into a new version under data/sources/, tracked by DVC; equal content once only."""
    settings.apply(Path("."))
    version = import_files(format, files, as_options(option))
    pointer = pointer_of(version.folder)
    if not pointer.exists():
        track(Path("."), [version.folder])
    if as_json:
        print(json.dumps(_plain(version), indent=2))
        return
    if not version.created:
        say(f"{version.name} has this content already: nothing to do")
        return
    say(f"{version.name}: {_counted(version)}")
    if version.invalid:
        print(f"{version.invalid} records could not be read; validate quarantines them, each with its reason")
    if version.empty:
        print(f"{version.empty} records hold nothing that this format compares or shows")
    say(f"commit {pointer.as_posix()}, then: prefloop plan")


@app.command("formats")
def formats_(
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """List the formats that can be imported."""
    found = formats()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for name, words in found.items():
        print(f"{name:<{width}}  {words}")


@app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False) -> None:
    """List the imported versions."""
    found = versions()
    if as_json:
        print(json.dumps([_plain(version) for version in found], indent=2))
    elif not found:
        print("nothing imported yet: prefloop data import FORMAT FILE...")
    else:
        for version in found:
            say(f"{version.name}  {_counted(version)}")


def as_options(texts: Sequence[str] | None) -> dict[str, str]:
    """What `--option NAME=VALUE` says, given any number of times.

    Raises:
        ConfigError: one of them is not of that form.
    """
    return dict(map(_pair, texts or ()))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--option {text!r} is not NAME=VALUE", "for example: --option prompt=question")
    return name, value


def _counted(version: Version) -> str:
    counts = [f"{count} {kind}" for kind, count in version.rows.items()]
    return ", ".join([*counts, *([f"{version.invalid} unreadable"] if version.invalid else [])])


def _plain(version: Version) -> dict[str, Any]:
    return {**dataclasses.asdict(version), "folder": version.folder.as_posix()}
