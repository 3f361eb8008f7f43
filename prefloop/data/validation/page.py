"""The page on validation: every kind and expectation, what was quarantined and why. Nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prefloop.data.validation.leaks import LeakReport

_WORDS: Final[Mapping[str, str]] = {
    "readable": "The importer could read the row",
    "schema": "Keys and types are right",
    "prompt_not_empty": "No turn of the prompt is empty",
    "completion_not_empty": "No completion is empty",
    "completions_differ": "Completions of different rank differ",
    "same_prompt": "Compared transcripts part at the last turn",
    "roles_alternate": "User and assistant speak by turns",
    "ends_with_assistant": "Completions end on an assistant turn",
    "length": "Prompt and longest completion fit (tokens)",
    "no_duplicate": "No row says again what an earlier one said",
    "no_duplicate_text": "No text stands twice",
    "no_near_duplicate": "No row is nearly the same as an earlier one",
    "consistent_preference": "No rater prefers A to B and B to A",
    "encoding": "No damaged characters",
    "no_secrets": "No keys, tokens or card numbers",
    "no_personal_data": "No e-mail addresses, phone or social security numbers",
    "usable_rows": "Enough usable rows are left",
    "quarantined_share": "Not too many rows are quarantined",
    "length_balance": "Neither long nor short completions are preferred as such",
    "rater_agreement": "Raters agree where several judged one pair",
}

_FIGURES: Final[Mapping[str, tuple[str, str]]] = {
    "tokens_median": ("median length", "{:.0f} tokens"),
    "tokens_p95": ("95th percentile", "{:.0f} tokens"),
    "tokens_max": ("longest", "{:.0f} tokens"),
    "pairs": ("judged pairs", "{:.0f}"),
    "ties": ("ties among them", "{:.0f}"),
    "longer_chosen": ("longer one preferred", "{:.1%}"),
    "rater_agreement": ("Krippendorff's alpha", "{:.2f}"),
    "pairs_by_several_raters": ("pairs by several raters", "{:.0f}"),
    "unjudged_rows": ("skipped or both bad", "{:.0f}"),
}
_COMPARED_ONLY: Final = ("pairs", "ties", "longer_chosen", "rater_agreement", "pairs_by_several_raters")


def render_page(kinds: Sequence[Mapping[str, Any]], leaks: LeakReport) -> str:
    """Renders the page.

    Args:
        kinds: `dataclasses.asdict` of each `KindReport`; kinds without rows are named, not shown at length.
        leaks: what `find_leaks` found.

    Returns:
        HTML; every text from the data is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(
        kinds=[_shown(kind) for kind in kinds if kind["rows_in"]],
        empty=[kind["kind"] for kind in kinds if not kind["rows_in"]],
        rows_in=sum(kind["rows_in"] for kind in kinds),
        validated=sum(kind["validated"] for kind in kinds),
        quarantined=sum(kind["quarantined"] for kind in kinds),
        leaks=leaks,
    )


def _shown(kind: Mapping[str, Any]) -> dict[str, Any]:
    most = max(kind["reasons"].values(), default=1)
    broken = [finding for finding in kind["findings"] if not finding["met"]]
    return {
        **kind,
        "passed_share": kind["validated"] / kind["rows_in"],
        "bars": [
            {"name": name, "rows": rows, "width": 100 * rows / most}
            for name, rows in sorted(kind["reasons"].items(), key=lambda item: (-item[1], item[0]))
        ],
        "figures": _figures(kind),
        "findings": [{**finding, "words": _WORDS[finding["name"]]} for finding in kind["findings"]],
        "broken": [finding for finding in broken if finding["examples"]],
        "sources": sorted(kind["sources"].items(), key=lambda item: (-item[1], item[0])),
    }


def _figures(kind: Mapping[str, Any]) -> list[tuple[str, str]]:
    shown = []
    for name, (words, form) in _FIGURES.items():
        value = kind["figures"].get(name)
        if value is None or (name in _COMPARED_ONLY and not kind["figures"].get("pairs")):
            continue
        if name in ("unjudged_rows", "pairs_by_several_raters") and not value:
            continue
        shown.append((words, form.format(value)))
    return shown
