"""Where policies leave what they answered on their way, for the stage `looks` to judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefloop.files import write_jsonl
from tasks.support.stage import Stage

LOOKS = Path("reports/looks")
PROMPTS = Path("data/validated/prompts.jsonl")


def write_looks(stage: Stage[Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes reports/looks/POLICY.jsonl; a file without rows where the policy was not looked at."""
    write_jsonl(LOOKS / f"{stage.part}.jsonl", rows)
