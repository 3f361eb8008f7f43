"""The report as one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prefloop.evaluation.findings import REFERENCES, findings
from prefloop.report.comparison import (
    colours_of,
    kinds_table,
    kl_chart,
    measures,
    overview_charts,
)
from prefloop.report.conversations import choose
from prefloop.report.curves import stage_curves
from prefloop.report.data import kinds_of_rows, sources_table
from prefloop.report.formats import percent, signed
from prefloop.report.looks import look_charts
from prefloop.report.material import Material

_TEMPLATES: Final = Path(__file__).parent


def render(material: Material) -> str:
    """The page: self-contained, no scripts, everything that came from data escaped.

    Equal material gives equal bytes: the page holds no time of day and no path.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "signed": signed}
    return environment.get_template("report.html.j2").render(_view(material))


def _view(material: Material) -> dict[str, Any]:
    evaluation = material.evaluation
    policies = list(evaluation["policies"])
    colours = colours_of(policies)
    focus = best_candidate(material.decision, policies)
    groups = choose(material.answers, policies, focus, material.samples) if focus and material.samples else []
    return {
        "material": material,
        "policies": policies,
        "colours": colours,
        "gold": evaluation["judge"] == "gold",
        "judge": "gold" if evaluation["judge"] == "gold" else "judge",
        "oracle": evaluation.get("oracle"),
        "verdict": verdict(material.decision),
        "measures": measures(evaluation),
        "overview": overview_charts(evaluation, colours),
        "kinds": kinds_table(evaluation),
        "kl": kl_chart(evaluation, material.curves, colours, material.rules.max_kl),
        "looks": look_charts(material.looks, colours),
        "findings": findings(evaluation, material.rules),
        "groups": groups,
        "focus": focus,
        "curves": stage_curves(material.curves, colours),
        "settings": {section: dict(flat(values)) for section, values in material.settings.items()},
        "stages": {stage: dict(flat(values)) for stage, values in material.stages.items()},
        "data": kinds_of_rows(material.validation),
        "sources": sources_table(material.ingest),
    }


def best_candidate(decision: Mapping[str, Any], policies: list[str]) -> str | None:
    """The policy that the page looks at most closely: the champion, else the best scored, else the first."""
    ranked = [
        decision["champion"],
        *decision["policies"],
        *(name for name in policies if name not in REFERENCES),
    ]
    return next((name for name in ranked if name), None)


def verdict(decision: Mapping[str, Any]) -> str:
    """The decision in a sentence."""
    if decision["champion"]:
        return f"{decision['champion']} passes every rule and is the best that does."
    return "No policy passes every rule: none is promoted."


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as dotted names with their values as params.yaml writes them: true, ["a", "b"], null."""
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            pairs += flat(value, f"{name}.")
        elif isinstance(value, float):
            pairs.append((name, f"{value:.6g}"))
        else:
            pairs.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs
