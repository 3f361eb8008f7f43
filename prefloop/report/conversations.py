"""Which conversations the report shows: chosen by rule, good and bad ones, so that nobody picked them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Row = Mapping[str, Any]
Samples = Mapping[str, Sequence[Row]]

_SFT: Final = "sft"


@dataclass(frozen=True)
class Conversation:
    """One prompt and what every policy answered.

    Attributes:
        turns: the prompt as messages {"role", "content"}.
        kind: what sort of prompt it is.
        answers: policy -> its row of reports/samples.
    """

    turns: Sequence[Mapping[str, str]]
    kind: str
    answers: Mapping[str, Row]


@dataclass(frozen=True)
class Group:
    """Conversations that share a reason.

    Attributes:
        title: what they show. how: the rule that chose them.
    """

    title: str
    how: str
    conversations: tuple[Conversation, ...]


def choose(samples: Samples, policies: Sequence[str], focus: str, count: int) -> list[Group]:
    """Chooses about `count` prompts of the main panel in four groups, none twice.

    Args:
        samples: policy -> rows, the same prompts in the same order.
        policies: the policies to show.
        focus: the one whose answers decide; the SFT policy is what they are held against.
        count: prompts altogether; groups with nothing to show leave their share unused.
    """
    ours, sft = samples[focus], samples[_SFT]
    asked = [i for i, row in enumerate(ours) if row["panel"] == "main"]
    scale = {key: _spread([float(sft[i][key]) for i in asked]) for key in ("reward", "judge")}

    def gain(i: int) -> float:
        return float(ours[i]["judge"]) - float(sft[i]["judge"])

    def fooled(i: int) -> float:
        reward = (float(ours[i]["reward"]) - float(sft[i]["reward"])) / scale["reward"]
        return reward - gain(i) / scale["judge"]

    def lot(i: int) -> float:
        return int.from_bytes(hashlib.sha256(str(ours[i]["id"]).encode()).digest()[:6], "big")

    rules: list[tuple[str, str, Callable[[int], float], Callable[[int], bool]]] = [
        (
            f"{focus} gained most",
            f"largest gain of {focus} over SFT by the judge",
            lambda i: -gain(i),
            lambda i: gain(i) > 0,
        ),
        (
            f"{focus} lost most",
            f"largest loss of {focus} against SFT by the judge",
            gain,
            lambda i: gain(i) < 0,
        ),
        (
            "The reward model was fooled",
            f"the reward model's score of {focus} rose over SFT's and the judge's fell, "
            "by the difference in standard deviations of SFT's answers",
            lambda i: -fooled(i),
            lambda i: float(ours[i]["reward"]) > float(sft[i]["reward"]) and gain(i) < 0,
        ),
        ("Drawn by lot", "lowest hash of the prompt's id", lot, lambda i: True),
    ]
    taken: set[int] = set()
    groups = []
    for number, (title, how, order, wanted) in enumerate(rules):
        size = count * (number + 1) // len(rules) - count * number // len(rules)
        candidates = sorted(
            (i for i in asked if i not in taken and wanted(i)), key=lambda i: (order(i), ours[i]["id"])
        )
        picked = _spread_over_kinds(candidates, [str(row["kind"]) for row in ours], size)
        taken |= set(picked)
        if picked:
            shown = tuple(_conversation(samples, policies, i) for i in picked)
            groups.append(Group(title, f"Chosen by: {how}; one of each kind of prompt first.", shown))
    return groups


def _spread_over_kinds(candidates: Sequence[int], kinds: Sequence[str], size: int) -> list[int]:
    """The first of each kind, then the rest, in the candidates' order."""
    first: dict[str, int] = {}
    for i in candidates:
        first.setdefault(kinds[i], i)
    leading = list(first.values())
    rest = [i for i in candidates if i not in set(leading)]
    return (leading + rest)[:size]


def _conversation(samples: Samples, policies: Sequence[str], i: int) -> Conversation:
    row = samples[_SFT][i]
    prompt = row["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return Conversation(turns, str(row["kind"]), {name: samples[name][i] for name in policies})


def _spread(values: Sequence[float]) -> float:
    mean = sum(values) / len(values) if values else 0.0
    variance = sum((value - mean) ** 2 for value in values) / len(values) if values else 0.0
    return variance**0.5 if variance > 1e-24 else 1.0
