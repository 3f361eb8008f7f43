"""The stage report: policies side by side in metrics/evaluate.json, and the run in reports/report.html."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from prefloop.config.evaluate import EvaluateConfig
from prefloop.config.policies import policies_in, policy_values
from prefloop.config.promote import PromoteConfig
from prefloop.config.read import read_section, read_yaml
from prefloop.config.report import ReportConfig
from prefloop.errors import DataError
from prefloop.evaluation.merge import merge
from prefloop.evaluation.promotion import decide
from prefloop.files import read_json, read_jsonl
from prefloop.report.material import Material
from prefloop.report.page import render
from tasks.support.stage import Stage

METRICS, PLOTS, SAMPLES = Path("metrics"), Path("plots"), Path("reports/samples")
KINDS = ("text", "demonstrations", "preferences", "judge", "unpaired", "held_out", "prompts", "evaluation")
MODELS = ("base", "sft", "reward", "judge")


def read_curve(path: Path) -> list[dict[str, float]]:
    """The rows of a learning curve; an empty cell is a metric that was not logged at that step.

    Raises:
        DataError: a cell is no number.
    """
    with open(path, encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    try:
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{path} is no learning curve: {error}", "run the stage that writes it again"
        ) from error


def read_present(folder: Path, names: dict[str, str]) -> dict[str, Any]:
    """The JSON files of `folder` that exist, by name: not every preset trains every stage."""
    return {name: read_json(folder / file) for name, file in names.items() if (folder / file).exists()}


def main() -> None:
    """Merges, decides and writes."""
    with Stage.open("report", ReportConfig) as stage:
        evaluate = read_section("evaluate", EvaluateConfig)
        rules = read_section("promote", PromoteConfig)
        figures = {name: read_json(METRICS / "evaluate" / f"{name}.json") for name in evaluate.policies}
        answers = {name: list(read_jsonl(SAMPLES / f"{name}.jsonl")) for name in evaluate.policies}
        evaluation = merge(figures, answers, resamples=evaluate.bootstrap)
        params = read_yaml("params.yaml")
        methods = {name: method for method, name in policies_in(params)}
        trainings = (*MODELS, *methods)
        material = Material(
            title=stage.config.title,
            seed=stage.seed,
            samples=stage.config.samples,
            rules=rules,
            evaluation=evaluation,
            answers=answers,
            looks=read_present(METRICS, {"looks": "looks.json"}).get("looks", {}),
            curves={
                name: curve
                for name in trainings
                if (PLOTS / f"{name}.csv").exists() and (curve := read_curve(PLOTS / f"{name}.csv"))
            },
            ingest=read_present(METRICS, {"ingest": "ingest.json"}).get("ingest", {}),
            validation=read_present(METRICS, {kind: f"validate-{kind}.json" for kind in KINDS}),
            stages=read_present(METRICS, {name: f"{name}.json" for name in MODELS})
            | read_present(METRICS / "policies", {name: f"{name}.json" for name in methods}),
            decision=decide(evaluation, rules).as_json(),
            environment=stage.compute.to_dict(),
            settings={name: params[name] for name in ("ingest", *MODELS) if params.get(name)}
            | {name: {"method": m, **policy_values(params, m, name)} for name, m in methods.items()}
            | {name: params[name] for name in ("evaluate", "promote") if params.get(name)},
        )
        with stage.output_file("reports/report.html") as handle:
            handle.write(render(material))
        stage.metrics(evaluation, METRICS / "evaluate.json")
        stage.say("the page is reports/report.html")


if __name__ == "__main__":
    main()
