"""What a plan says: for each stage what will happen, and for what reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Action(StrEnum):
    """What will happen to a stage.

    RUN: its command runs. RESTORE: its outputs come from DVC's cache. MAYBE: it runs if an output that it
    reads changes. STAYS: what it reads will be written again, by all one can tell as it is; DVC decides
    when the run comes to it. SKIP: nothing it reads changed.
    """

    RUN = "run"
    RESTORE = "restore"
    MAYBE = "maybe"
    STAYS = "stays"
    SKIP = "skip"


@dataclass(frozen=True)
class Reason:
    """One difference that makes a stage run.

    Attributes:
        kind: "parameter", "environment", "code", "data", "command", "output", "new", "forced", "upstream",
            or "expected".
        subject: parameter, file or stage.
        old, new: values before and after, where the kind has them.
    """

    kind: str
    subject: str
    old: Any = None
    new: Any = None

    def __str__(self) -> str:
        match self.kind:
            case "parameter" | "environment":
                return f"{self.subject}: {_shown(self.old)} -> {_shown(self.new)}"
            case "code" | "data":
                return f"{self.subject} {self.new}"
            case "command":
                return "its command changed"
            case "output":
                return f"{self.subject} is {self.new}"
            case "new":
                return "never run here"
            case "forced":
                return "asked for with --force"
            case "expected":
                return f"{self.subject} will stay as it is"
            case _:
                return f"only if {self.subject} changes"


@dataclass(frozen=True)
class Place:
    """Where a stage runs, and what it has there for itself.

    Attributes:
        pool: Prefect work pool; empty is this machine.
        gpus: GPUs (count); 0 where it asks for none, or where this machine computes without.
        memory: main memory (bytes); 0 where it asks for nothing.
    """

    pool: str = ""
    gpus: int = 0
    memory: int = 0


HERE = Place()


@dataclass(frozen=True)
class StagePlan:
    """What will happen to one stage.

    Attributes:
        parents: stages whose outputs it reads.
        reasons: empty for a stage that is skipped.
        seconds: what its past runs took (median), None when it never ran here.
        cost: what they cost besides (medians), as far as it is known; see tasks/support/costs.py.
        edited: declared outputs that somebody changed by hand and that exist nowhere else.
        place: where it would run.
    """

    name: str
    action: Action
    parents: tuple[str, ...]
    reasons: tuple[Reason, ...] = ()
    seconds: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    edited: tuple[str, ...] = ()
    place: Place = HERE


@dataclass(frozen=True)
class Plan:
    """Every stage asked for and all it depends on, parents first."""

    stages: tuple[StagePlan, ...]

    @property
    def nothing_to_do(self) -> bool:
        return all(stage.action is Action.SKIP for stage in self.stages)

    @property
    def edited(self) -> dict[str, str]:
        """Hand-edited output -> the stage that wrote it."""
        return {path: stage.name for stage in self.stages for path in stage.edited}

    def with_action(self, action: Action) -> tuple[StagePlan, ...]:
        return tuple(stage for stage in self.stages if stage.action is action)


def _shown(value: Any) -> str:
    return "(none)" if value is None else str(value)
