"""The best that any response of the grammar can earn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product as cartesian
from typing import Any

from prefloop.world.facts import World, attribute_named
from prefloop.world.judge import gold
from prefloop.world.responses import CLAIMS, Act, Sentence, build, count_tokens, of_act

_DETAILS = 2
"""More details than this only cost."""


def best(world: World, meta: Mapping[str, Any]) -> tuple[float, str]:
    """Returns the exact maximum of gold over the grammar for a prompt, and a shortest response that earns it.

    Exact without trying every response: gold depends on the set of things said and falls with length; a
    second sentence that says the same earns nothing; no prompt has more than one right answer; a true fact
    that nobody asked for earns what a detail does, and no other claim about it earns anything. So one
    shortest sentence stands for all that say the same, and at most one answer, an agreement, a polite
    sentence and two details suffice.
    """
    scored = (
        (gold(world, meta, text, ended=True).total, -count_tokens(text), text)
        for text in map(build, _candidates(meta))
    )
    total, _, text = max(scored)
    return total, text


def _candidates(meta: Mapping[str, Any]) -> Iterator[tuple[Sentence, ...]]:
    details = sorted(of_act(Act.DETAIL), key=_length)[:_DETAILS]
    optional: list[list[tuple[Sentence, ...]]] = [
        [(), (_shortest(Act.AGREE),)],
        [()] + [(answer,) for answer in _answers(meta)],
        [tuple(details[:count]) for count in range(_DETAILS + 1)],
        [(), (_shortest(Act.POLITE),)],
    ]
    for parts in cartesian(*optional):
        yield tuple(sentence for part in parts for sentence in part)


def _answers(meta: Mapping[str, Any]) -> Iterator[Sentence]:
    """One shortest sentence for each thing that can be said of what was asked."""
    for act in (Act.REFUSE, Act.HEDGE, Act.BALANCE):
        yield _shortest(act)
    if "attribute" in meta:
        for value in attribute_named(meta["attribute"]).values:
            yield min(CLAIMS["", meta["attribute"], value], key=_length)
    if "thing" in meta:
        yield min((s for s in of_act(Act.INSTRUCT) if s.subject == meta["thing"]), key=_length)


def _shortest(act: Act) -> Sentence:
    return min(of_act(act), key=_length)


def _length(sentence: Sentence) -> int:
    return count_tokens(sentence.text)
