"""CSV or Parquet tables with named columns.

Options map what prefloop needs to a column: prompt, chosen, rejected; or a, b and winner (whose cells say a,
    b or tie,
the column's name, or 0, 1); or completion, label, text; and rater, id. Left out, a column has the name of its
use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.importers import trl
from prefloop.data.records import Row
from prefloop.data.transcripts import required, required_text, with_meta

KIND: Final = "preferences"
USES: Final = (
    "prompt",
    "chosen",
    "rejected",
    "a",
    "b",
    "winner",
    "completion",
    "label",
    "text",
    "rater",
    "id",
)
_TRUE: Final = ("true", "1", "yes", "good")
_FALSE: Final = ("false", "0", "no", "bad")


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one row of the kind that the columns say."""
    for use in options:
        if use not in USES:
            raise ValueError(f"unknown column use {use!r}: one of {', '.join(USES)}")
    for column in options.values():
        required(record, column)
    named = {use: record[options.get(use, use)] for use in USES if options.get(use, use) in record}
    taken = {options.get(use, use) for use in named}
    named["meta"] = {column: value for column, value in record.items() if column not in taken}
    if "winner" in named:
        yield "preferences", with_meta(_judged(named, options), named, "prompt", "a", "b", "winner")
    elif "text" in named and "prompt" not in named:
        yield "text", with_meta({"text": required_text(named, "text")}, named, "text")
    else:
        if "label" in named:
            named["label"] = _label(named["label"])
        yield from trl.convert(named, {})


def _judged(named: Mapping[str, Any], options: Mapping[str, str]) -> Row:
    pair = [required_text(named, "a"), required_text(named, "b")]
    winner = str(named["winner"]).strip().lower()
    first = ("a", "0", options.get("a", "a").lower(), "model_a", "response_a")
    second = ("b", "1", options.get("b", "b").lower(), "model_b", "response_b")
    if winner in first:
        ranks = [0, 1]
    elif winner in second:
        ranks = [1, 0]
    elif winner.startswith("tie") or winner in ("same", "both", "neither"):
        ranks = [0, 0]
    else:
        raise ValueError(f"winner must say a, b or tie, got {named['winner']!r}")
    return {"prompt": required(named, "prompt"), "completions": pair, "ranks": ranks}


def _label(value: Any) -> Any:
    text = str(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError(f"label must be true or false, got {value!r}")
