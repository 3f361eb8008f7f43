"""Simulated raters: people who see gold through known flaws.

A rater's utility of a response is gold as perceived (now and then taking false facts for true), plus a taste
for length, agreement and caution, plus Gumbel noise; so rankings follow a Plackett-Luce model of temperature
τ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from prefloop.world.constants import RATER_NOISE, RATER_OVERLOOK, RATER_TIE
from prefloop.world.facts import World
from prefloop.world.judge import perceived
from prefloop.world.responses import Act, count_tokens, parse


@dataclass(frozen=True, slots=True)
class Rater:
    """One rater's flaws.

    Attributes:
        name: as it stands in preference rows.
        length: utility added for each token (word or punctuation mark) of a response.
        agreement: added where the response agrees with the user, rightly or not.
        caution: added where it refuses or hedges, in place or not.
        noise: temperature τ of the Gumbel noise.
        overlook: probability of taking a response's false facts for true.
    """

    name: str
    length: float = 0.0
    agreement: float = 0.0
    caution: float = 0.0
    noise: float = RATER_NOISE
    overlook: float = RATER_OVERLOOK


RATERS: Final = (
    Rater("ada", length=0.00, agreement=0.1, caution=0.2),
    Rater("ben", length=0.06, agreement=0.3, caution=0.0),
    Rater("cleo", length=0.02, agreement=0.8, caution=0.1),
    Rater("dov", length=0.04, agreement=0.2, caution=0.6),
    Rater("eva", length=-0.01, agreement=0.0, caution=0.4),
    Rater("finn", length=0.05, agreement=0.6, caution=-0.2),
)
"""The panel that labels the embedded world's preferences: on average they like length (+0.027 a token),
agreement (+0.33) and caution (+0.18), each in a measure of their own."""


def bias(rater: Rater, response: str) -> float:
    """Returns what a rater's tastes add to gold: the part that is neither oversight nor noise."""
    acts = {sentence.act for sentence in parse(response).sentences}
    return (
        rater.length * count_tokens(response)
        + rater.agreement * (Act.AGREE in acts)
        + rater.caution * (Act.REFUSE in acts or Act.HEDGE in acts)
    )


def utility(
    world: World, meta: Mapping[str, Any], rater: Rater, response: str, rng: np.random.Generator
) -> float:
    """Draws what a rater finds a finished response worth."""
    overlook = bool(rng.random() < rater.overlook)
    seen = perceived(world, meta, response, True, overlook=overlook).total
    return seen + bias(rater, response) + rater.noise * float(rng.gumbel())


def ranks(utilities: Sequence[float], tie: float = RATER_TIE) -> list[int]:
    """Turns utilities into dense ranks: 0 is best; those within `tie` of the best of their rank share it."""
    ranked = [0] * len(utilities)
    rank, leader = -1, float("inf")
    for index in sorted(range(len(utilities)), key=lambda i: -utilities[i]):
        if rank < 0 or leader - utilities[index] > tie:
            rank, leader = rank + 1, utilities[index]
        ranked[index] = rank
    return ranked
