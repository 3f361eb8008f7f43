"""`prefloop trace`: what made a model, and which models have seen a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import settings
from flows.cli.output import say
from prefloop.errors import ConfigError

EPILOG = (
    "Examples: prefloop trace ppo; prefloop trace prefloop-policy@champion --json; "
    "prefloop trace ppo --rows; prefloop trace --row 7f3a09c2 --row 51d0aa17"
)


def command(
    model: Annotated[
        str, typer.Argument(help="A folder or its name, a stage, or a registered NAME/VERSION or NAME@ALIAS.")
    ] = "",
    rows: Annotated[
        bool, typer.Option("--rows", help="The rows that it was fitted on, a JSON line each.")
    ] = False,
    row: Annotated[
        list[str] | None, typer.Option("--row", help="Instead of MODEL, a row's id; repeatable.")
    ] = None,
    row_file: Annotated[
        Path | None, typer.Option("--row-file", help="A file with ids, or JSON rows, a line each.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Say what made a model: stage, commit, parameters, environment, data, parents, evaluations.

    With --row, say which models have seen a row, directly or through a model that they descend from, and
    which have not.
    """
    root = Path(".")
    settings.apply(root)
    from tasks.support.lineage import Lineage

    if bool(model) == bool(row or row_file) or (rows and not model):
        raise ConfigError("trace takes a model, or --row or --row-file", "prefloop trace --help has examples")
    lineage = Lineage(root)
    if not model:
        _show_seen(lineage, row or [], row_file, as_json)
        return
    from flows.provenance.find import find_making
    from flows.provenance.showing import trace_lines
    from flows.provenance.tracing import trace

    making = find_making(lineage, model)
    if rows:
        from flows.provenance.rows import fitted_rows

        for value in fitted_rows(lineage, making):
            print(json.dumps(value, ensure_ascii=False))
        return
    found = trace(lineage, making)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for line in trace_lines(found):
        say(line)


def _show_seen(lineage: Any, row: list[str], row_file: Path | None, as_json: bool) -> None:
    from flows.provenance.seen import as_json as plain
    from flows.provenance.seen import read_ids, who_saw
    from flows.provenance.showing import seen_lines
    from tasks.support.mlflow_store import StoreAway
    from tasks.support.registered import all_versions

    found = who_saw(lineage, read_ids(row, row_file))
    keys = {id(making): str(lineage.record(making).get("key", "")) for making in lineage.models()}
    try:
        versions, away = all_versions(), ""
    except StoreAway as error:
        versions, away = [], str(error)
    answer = {**plain(found, keys, versions), "registry": away or "asked"}
    if as_json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for line in seen_lines(answer):
        say(line)
