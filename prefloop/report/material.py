"""Everything that a report is made of, read already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.config.promote import PromoteConfig

Curve = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Material:
    """What a run left behind.

    Attributes:
        title: heading of the page.
        seed: of the run.
        samples: prompts whose conversations are shown (count).
        rules: the limits of promotion.
        evaluation: metrics/evaluate.json.
        answers: policy -> rows of reports/samples/POLICY.jsonl.
        looks: metrics/looks.json; empty where nothing was looked at.
        curves: stage -> rows of plots/STAGE.csv, each with "step".
        ingest: metrics/ingest.json.
        validation: kind -> metrics/validate-KIND.json.
        stages: training stage -> metrics/STAGE.json.
        decision: the promotion decision as JSON; see `prefloop.evaluation.promotion`.
        environment: runs/environment.json.
        settings: section -> what params.yaml says in it.
    """

    title: str
    seed: int
    samples: int
    rules: PromoteConfig
    evaluation: Mapping[str, Any]
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    looks: Mapping[str, Any]
    curves: Mapping[str, Curve]
    ingest: Mapping[str, Any]
    validation: Mapping[str, Mapping[str, Any]]
    stages: Mapping[str, Mapping[str, Any]]
    decision: Mapping[str, Any]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
