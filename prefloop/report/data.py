"""What the report says of the data: what came in, what was put away and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kinds_of_rows(validation: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a kind that had rows: counts, quarantined rows by reason, and expectations that only warn."""
    return [
        {
            "kind": kind,
            "rows": counts["rows_in"],
            "validated": counts["validated"],
            "quarantined": counts["quarantined"],
            "reasons": counts["reasons"],
            "warnings": [
                {"name": finding["name"], "rows": finding["rows"], "figure": finding["figure"]}
                for finding in counts.get("findings", [])
                if not finding["met"] and finding["severity"] == "warn"
            ],
        }
        for kind, counts in validation.items()
        if counts["rows_in"]
    ]


def sources_table(ingest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a source and kind: how many rows came in, and what became of them."""
    return [
        {
            "source": source,
            "kind": kind,
            "in": fates.get("in", 0),
            "fates": {
                name.replace("_", " "): count for name, count in fates.items() if name != "in" and count
            },
        }
        for source, kinds in ingest.get("sources", {}).items()
        for kind, fates in kinds.items()
    ]
