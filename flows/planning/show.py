"""A plan for people (a table when it is a terminal, plain lines else) and for programs (JSON)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.planning.model import Action, Place, Plan, StagePlan
from prefloop.printable import printable_line
from tasks.support.costs import total

WORDS = {
    Action.RUN: "runs",
    Action.RESTORE: "restored from cache",
    Action.MAYBE: "may run",
    Action.STAYS: "stays",
    Action.SKIP: "unchanged",
}
REASONS_SHOWN = 6


def plan_lines(plan: Plan, *, skipped: bool = True) -> list[str]:
    """One line a stage, its further reasons below; what is unchanged is left out unless `skipped`."""
    shown = [stage for stage in plan.stages if skipped or stage.action is not Action.SKIP]
    width = max((len(stage.name) for stage in shown), default=0)
    lines = []
    for stage in shown:
        reasons = _reasons(stage)
        took = _took(stage) if _may_run(stage) else []
        past = f" (took {', '.join(took)})" if took else ""
        where = place_words(stage.place) if stage.action is not Action.SKIP else ""
        past += f" [{where}]" if where else ""
        head = f"{stage.name:<{width}}  {WORDS[stage.action]:<21}"
        lines.append((head + (reasons[0] if reasons else "") + past).rstrip())
        lines += [" " * len(head) + reason for reason in reasons[1:]]
    return [*map(printable_line, lines), summary(plan)]


def summary(plan: Plan) -> str:
    """One sentence: how many stages do what, and what past runs of them took."""
    if plan.nothing_to_do:
        return f"nothing to do: all {len(plan.stages)} stages are up to date"
    counts = [
        f"{len(plan.with_action(action))} {WORDS[action]}" for action in Action if plan.with_action(action)
    ]
    running = [stage for stage in plan.stages if _may_run(stage)]
    known = [seconds for stage in running if (seconds := _seconds(stage)) is not None]
    unknown = len(running) - len(known)
    took = [duration(sum(known)), *hours_in(total(stage.cost for stage in running))]
    cost = f"; past runs of these took {', '.join(took)}" if known else ""
    cost += f" ({unknown} never ran here)" if known and unknown else ""
    return ", ".join(counts) + cost


def as_json(plan: Plan) -> list[dict[str, Any]]:
    """The plan as plain values."""
    return [
        {
            "stage": stage.name,
            "action": stage.action.value,
            "reasons": [
                {"kind": reason.kind, "subject": reason.subject, "old": reason.old, "new": reason.new,
                 "text": str(reason)}
                for reason in stage.reasons
            ],
            "past_seconds": stage.seconds,
            "past_cost": dict(stage.cost),
            "edited_outputs": list(stage.edited),
            "place": {
                "pool": stage.place.pool or None, "gpus": stage.place.gpus,
                "memory_bytes": stage.place.memory,
            },
        }
        for stage in plan.stages
    ]  # fmt: skip


def place_words(place: Place) -> str:
    """Where a stage runs and what it asks for there; empty for one that asks this machine for nothing."""
    words = [f"on pool {place.pool}"] if place.pool else []
    words += [f"{place.gpus} GPU{'s' * (place.gpus > 1)}"] if place.gpus else []
    words += [f"{place.memory / 2**30:.3g} GiB"] if place.memory else []
    return ", ".join(words)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8 s, 2 min 05 s, 1 h 12 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def hours_in(cost: Mapping[str, float]) -> list[str]:
    """Processor and GPU time of a cost: 0.12 CPU h, 0.05 GPU h; what it does not tell is left out."""
    named = (("cpu_seconds", "CPU h"), ("gpu_seconds", "GPU h"))
    return [f"{_digits(cost[name] / 3600)} {unit}" for name, unit in named if name in cost]


def cost_words(cost: Mapping[str, float]) -> str:
    """A cost in a line: time, hours of processor and GPU, energy, the largest memory."""
    words = [duration(cost["wall_seconds"])] if "wall_seconds" in cost else []
    words += hours_in(cost)
    named = (("cpu_energy_joules", "processors"), ("gpu_energy_joules", "GPUs"))
    words += [f"{_digits(cost[name] / 3.6e6)} kWh of {what}" for name, what in named if name in cost]
    peaks = (("peak_rss_mib", "memory"), ("peak_gpu_mib", "GPU memory"))
    words += [f"at most {cost[name] / 1024:.1f} GiB of {what}" for name, what in peaks if name in cost]
    return ", ".join(words)


def _digits(value: float) -> str:
    """Two digits of what is small, two decimals of what is not."""
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _took(stage: StagePlan) -> list[str]:
    """What past runs of a stage took; nothing for one that never ran here."""
    seconds = _seconds(stage)
    return [] if seconds is None else [duration(seconds), *hours_in(stage.cost)]


def _seconds(stage: StagePlan) -> float | None:
    """Of a stage that only a bare `dvc repro` ran, the time that its record has."""
    return stage.cost.get("wall_seconds") if stage.seconds is None else stage.seconds


def _may_run(stage: StagePlan) -> bool:
    return stage.action in (Action.RUN, Action.MAYBE)


def _reasons(stage: StagePlan) -> list[str]:
    if stage.action is Action.MAYBE:
        causes = ", ".join(reason.subject for reason in stage.reasons)
        return [f"only if {causes} changes"]
    # What may change besides says nothing where a certain cause stands.
    certain = [reason for reason in stage.reasons if reason.kind != "upstream"] or list(stage.reasons)
    missing = [reason.subject for reason in certain if reason.kind == "output" and reason.new == "missing"]
    texts = [str(reason) for reason in certain if reason.subject not in missing]
    if missing:
        others = f" and {len(missing) - 1} more outputs are" if missing[1:] else " is"
        texts.append(f"{missing[0]}{others} missing")
    if len(texts) > REASONS_SHOWN:
        texts = [*texts[: REASONS_SHOWN - 1], f"and {len(texts) - REASONS_SHOWN + 1} more"]
    return texts
