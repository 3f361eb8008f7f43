"""How two trainings are compared, step by step, and the table of what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

TOLERANCE = 1e-4
"""Largest relative difference that counts as equal in float32."""


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what stands in the table. method: of prefloop; it says which trainer runs.
        section: keys of prefloop's configuration that differ from the table's common ones.
        peer: arguments of the peer's configuration.
        options: what is special about this row's data, or changed in the peer; its script names them.
        differs: by decision: in the "loss" (its gradient is equal) or in "all". Such a row fails when it does
            NOT differ, for then its reason is stale.
        why: the reason, or what the row shows.
        scale: losses are compared relative to the larger of the two, but at least to this: a policy-gradient
            loss is a sum of terms of size 1 that cancel, and means nothing relative to a value near 0.
    """

    name: str
    method: str
    section: dict[str, Any] = field(default_factory=dict)
    peer: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    differs: Literal["", "loss", "all"] = ""
    why: str = ""
    scale: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a comparison gave.

    Attributes:
        steps: optimiser steps compared. loss, norm: largest relative differences over them.
        first, last: the loss of the first and the last step: a training that does not move shows nothing.
        problem: why nothing could be compared, "" where it could.
    """

    row: Row
    steps: int = 0
    loss: float = float("nan")
    norm: float = float("nan")
    first: float = float("nan")
    last: float = float("nan")
    problem: str = ""

    @property
    def passes(self) -> bool:
        """True where the row is as it claims to be; a NaN never is."""
        if self.problem or math.isnan(self.loss + self.norm):
            return False
        expected = {"": (True, True), "loss": (False, True), "all": (False, False)}[self.row.differs]
        return (self.loss <= TOLERANCE, self.norm <= TOLERANCE) == expected

    @property
    def verdict(self) -> str:
        if not self.passes:
            return "FAILS"
        return {"": "equal", "loss": "equal gradient", "all": "by decision"}[self.row.differs]


def relative(ours: Sequence[float], theirs: Sequence[float], scale: float = 0.0) -> float:
    """Largest |a - b| / max(|a|, |b|, scale) over pairs; NaN if any is NaN."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        size = max(abs(a), abs(b), scale)
        difference = abs(a - b) / size if size else 0.0
        if not difference <= worst:  # a NaN is kept
            worst = difference
            if math.isnan(difference):
                break
    return worst


def compare(row: Row, ours: dict[str, Any], theirs: dict[str, Any], steps: int) -> Outcome:
    """Holds two recordings (see peers/recording.py) against each other.

    Steps that are missing and inputs that differ are problems, never passed over.
    """
    for side, recording in (("prefloop", ours), ("the peer", theirs)):
        if "error" in recording:
            return Outcome(row, problem=f"{side}: {recording['error']}")
        counts = {name: len(recording[name]) for name in ("losses", "norms", "tokens")}
        if set(counts.values()) != {steps}:
            return Outcome(row, problem=f"{side} recorded {counts} instead of {steps} steps")
        if not all(recording["tokens"]):
            return Outcome(row, problem=f"{side} recorded a step without tokens")
    for step, (a, b) in enumerate(zip(ours["tokens"], theirs["tokens"], strict=True), start=1):
        if a != b:
            return Outcome(row, problem=f"step {step} saw different tokens: {difference_of(a, b)}")
    return Outcome(
        row,
        steps,
        relative(ours["losses"], theirs["losses"], row.scale),
        relative(ours["norms"], theirs["norms"]),
        ours["losses"][0],
        ours["losses"][-1],
    )


def difference_of(ours: list[list[int]], theirs: list[list[int]]) -> str:
    """The first sequence that one side has and the other lacks, for a message."""
    mine = [ids for ids in ours if ids not in theirs]
    other = [ids for ids in theirs if ids not in ours]
    if not mine and not other:
        return f"{len(ours)} sequences against {len(theirs)}"
    return f"{mine[:1] or 'nothing'} against {other[:1] or 'nothing'}"


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, one row a comparison."""
    lines = [
        "| comparison | steps | loss, first to last | loss differs | norm differs | verdict | why |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        why = f"{outcome.problem} {outcome.row.why}".strip()
        lines.append(
            f"| {outcome.row.name} | {outcome.steps} | {outcome.first:.4f} to {outcome.last:.4f} "
            f"| {outcome.loss:.1e} | {outcome.norm:.1e} | {outcome.verdict} | {why} |"
        )
    return "\n".join(lines)
