"""`prefloop watch`: runs the pipeline when data changes, by content."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EPILOG = (
    "Examples: prefloop watch; prefloop watch --supersede; prefloop watch --once; "
    "prefloop watch --bucket s3://my-bucket/batches; prefloop watch -- --jobs 1 evaluate"
)


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="After --: passed on to `prefloop run`.", metavar="[-- ARGUMENT…]"),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 1.0,
    quiet: Annotated[
        float, typer.Option("--debounce", min=0, help="Seconds without a change before a run begins.")
    ] = 2.0,
    most: Annotated[
        float, typer.Option("--at-most", min=0, help="Seconds after which it begins although changes go on.")
    ] = 8.0,
    incoming: Annotated[
        Path, typer.Option(help="Folder where files are dropped; FORMAT/ in it says their format.")
    ] = Path("data/incoming"),
    format: Annotated[
        str, typer.Option(help="Format of files that lie loose there; by their rows by default.")
    ] = "",
    option: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for that format, such as a column; repeatable.")
    ] = None,
    bucket: Annotated[
        str, typer.Option(help="URL of an object store's prefix whose new objects are brought in.")
    ] = "",
    bucket_interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks there.")] = 5.0,
    supersede: Annotated[
        bool, typer.Option("--supersede", help="Ask a run to end when newer data arrives.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Deal with what is there, then end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="A JSON object a line; the run's own output on standard error.")
    ] = False,
) -> None:
    """Take files that are delivered, and run what changed data needs; equal content runs nothing."""
    from flows.cli.data import as_options
    from flows.watching.formats import Recipe
    from flows.watching.options import Options
    from flows.watching.voice import Voice
    from flows.watching.watch import watch
    from prefloop.data.importing import load_format
    from prefloop.errors import ConfigError

    if format:
        load_format(format)
    elif option:
        raise ConfigError("--option says nothing without --format", "name the format, too: --format table")
    options = Options(
        interval=interval,
        quiet=quiet,
        most=most,
        supersede=supersede,
        once=once,
        incoming=incoming,
        default=Recipe(format, as_options(option)) if format else None,
        bucket=bucket,
        bucket_interval=bucket_interval,
        arguments=tuple(arguments or ()),
    )
    raise typer.Exit(watch(Path("."), options, Voice(as_json=as_json)))
