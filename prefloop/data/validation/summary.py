"""The figures of a validation that are worth comparing between runs."""

from __future__ import annotations

from typing import Any

from prefloop.data.validation.checking import KindReport


def metrics_of(report: KindReport) -> dict[str, Any]:
    """Counts, reasons and figures, without the examples."""
    warned = {f.name: f.rows for f in report.findings if f.severity == "warn" and not f.met and f.rows}
    return {
        "rows_in": report.rows_in,
        "validated": report.validated,
        "quarantined": report.quarantined,
        "reasons": report.reasons,
        "warnings": warned,
        "figures": report.figures,
    }
