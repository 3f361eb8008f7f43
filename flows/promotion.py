"""The step after the last stage: decides, once for each evaluation, which policy is promoted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from flows.planning.model import Action, Plan
from flows.preparation import run_command
from flows.settings import STATE
from flows.supervision import Supervisor
from prefloop.config.read import read_yaml
from prefloop.files import sha256_file, sha256_text

EVALUATION = Path("metrics/evaluate.json")
STAGE = "report"


def promotion_due(root: Path, plan: Plan) -> bool:
    """True when the plan makes metrics/evaluate.json anew, or nothing was decided on it yet."""
    report = next((stage for stage in plan.stages if stage.name == STAGE), None)
    if report is None or not (root / "tasks/promote.py").exists():
        return False
    return report.action is not Action.SKIP or _decided(root) != _question(root)


def promote(supervisor: Supervisor, show: Callable[[str, str], None]) -> str:
    """Runs `python -m tasks.promote`, unless the same question was answered before."""
    root = supervisor.root
    if not (root / EVALUATION).exists():
        return "no evaluation to decide on"
    question = _question(root)
    if _decided(root) == question:
        return "decided before"
    run_command(supervisor, "promote", "python -m tasks.promote", show)
    (root / STATE / "promoted").write_text(question, encoding="ascii")
    return "decided"


def _question(root: Path) -> str:
    """Hash of what a decision follows from: the figures and the rules."""
    if not (root / EVALUATION).exists():
        return ""
    rules = json.dumps(read_yaml(root / "params.yaml").get("promote"), sort_keys=True)
    return sha256_text(sha256_file(root / EVALUATION) + rules)


def _decided(root: Path) -> str:
    path = root / STATE / "promoted"
    return path.read_text(encoding="ascii") if path.exists() else "never"
