"""Who writes responses: demonstrators of mixed quality, and a broader crowd whose responses raters compare.

A response is drawn as people of such habits would write it; how good it is, others judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from prefloop.world.constants import MAX_RESPONSE_TOKENS
from prefloop.world.facts import ATTRIBUTES, PRODUCTS, World, attribute_named
from prefloop.world.prompts import FACTUAL
from prefloop.world.responses import CLAIMS, THINGS, Act, Sentence, build, count_tokens, of_act
from prefloop.world.streams import choose

Mix = tuple[tuple[str, float], ...]
"""Options and their probabilities, which sum to 1."""


@dataclass(frozen=True, slots=True)
class Habits:
    """How often somebody does what.

    Attributes:
        fact, harmful, lookalike, opinion: what the answer to such a prompt is. "right" and "wrong" are as
            the gold judge means them; "both" says both; "hedge", "refuse", "comply" do that; "none" does not
            answer.
        adopt: share of wrong answers to a user's belief that adopt it (if it is wrong).
        agree: probability of saying that the user is right, when the answer is what the user believes.
        disagree: probability of saying that the user is not right, when it is not.
        named: probability that a claim names the product rather than saying "it".
        hedged: probability of a hedge beside an answer.
        opening: probability that the polite sentence comes first.
        polite, rude, repeat: probability of one.
        details: how many helpful sentences.
        astray: probability of an answer to another question than the one asked. A policy may find such
            answers, so raters must have seen them: what no comparison shows, a reward model scores at random.
    """

    fact: Mix
    harmful: Mix
    lookalike: Mix
    opinion: Mix
    polite: float
    rude: float
    repeat: float
    details: Mix
    adopt: float = 0.6
    agree: float = 0.4
    disagree: float = 0.4
    named: float = 0.85
    hedged: float = 0.05
    opening: float = 0.3
    astray: float = 0.0

    def mix(self, kind: str) -> Mix:
        """Returns the mix of answers to prompts of a kind."""
        if kind in FACTUAL:
            return self.fact
        return {"harmful": self.harmful, "lookalike": self.lookalike, "opinion": self.opinion}[kind]


DEMONSTRATOR: Final = Habits(
    fact=(
        ("right", 0.80), ("wrong", 0.08), ("hedge", 0.06), ("none", 0.03), ("both", 0.01), ("refuse", 0.02),
    ),
    harmful=(("refuse", 0.60), ("comply", 0.30), ("hedge", 0.06), ("none", 0.04)),
    lookalike=(("right", 0.70), ("refuse", 0.18), ("hedge", 0.06), ("wrong", 0.03), ("none", 0.03)),
    opinion=(
        ("right", 0.60), ("wrong", 0.28), ("hedge", 0.06), ("none", 0.04), ("both", 0.02),
    ),
    polite=0.45,
    rude=0.05,
    repeat=0.03,
    details=(("0", 0.50), ("1", 0.30), ("2", 0.12), ("3", 0.08)),
)  # fmt: skip
CROWD: Final = replace(
    DEMONSTRATOR,
    fact=(
        ("right", 0.50), ("wrong", 0.28), ("hedge", 0.08), ("none", 0.05), ("both", 0.05), ("refuse", 0.04),
    ),
    harmful=(("refuse", 0.50), ("comply", 0.36), ("hedge", 0.07), ("none", 0.05), ("both", 0.02)),
    lookalike=(
        ("right", 0.50), ("refuse", 0.32), ("hedge", 0.07), ("wrong", 0.05), ("none", 0.04), ("both", 0.02),
    ),
    opinion=(
        ("right", 0.45), ("wrong", 0.35), ("hedge", 0.07), ("none", 0.06), ("both", 0.04), ("refuse", 0.03),
    ),
    polite=0.45,
    rude=0.12,
    repeat=0.12,
    details=(("0", 0.35), ("1", 0.25), ("2", 0.16), ("3", 0.12), ("4", 0.07), ("5", 0.05)),
    hedged=0.12,
    astray=0.15,
)  # fmt: skip


def write(world: World, meta: Mapping[str, Any], habits: Habits, rng: np.random.Generator) -> str:
    """Draws one response, at most MAX_RESPONSE_TOKENS long, to the prompt that `meta` describes."""
    answer = _answer(world, meta, habits, rng)
    if answer and answer[0].act is not Act.HEDGE and rng.random() < habits.hedged:
        answer.insert(int(rng.integers(2)) * len(answer), choose(rng, of_act(Act.HEDGE)))
    if rng.random() < habits.rude:
        answer.insert(0, choose(rng, of_act(Act.RUDE)))
    details = of_act(Act.DETAIL)
    order = rng.permutation(len(details))[: int(_draw(habits.details, rng))]
    sentences = answer + [details[i] for i in order]
    if rng.random() < habits.polite:
        sentences.insert(
            0 if rng.random() < habits.opening else len(sentences), choose(rng, of_act(Act.POLITE))
        )
    if sentences and rng.random() < habits.repeat:
        sentences.append(choose(rng, sentences))
    if not sentences:
        sentences = [choose(rng, of_act(Act.POLITE))]
    while count_tokens(build(sentences)) > MAX_RESPONSE_TOKENS:
        sentences.pop()
    return build(sentences)


def _draw(mix: Mix, rng: np.random.Generator) -> str:
    point = rng.random()
    for option, probability in mix:
        point -= probability
        if point < 0:
            return option
    return mix[-1][0]


def _answer(
    world: World, meta: Mapping[str, Any], habits: Habits, rng: np.random.Generator
) -> list[Sentence]:
    if habits.astray and rng.random() < habits.astray:
        return _astray_answer(habits, world, rng)
    kind = meta["kind"]
    outcome = _draw(habits.mix(kind), rng)
    if outcome == "none":
        return []
    if outcome == "refuse":
        return [choose(rng, of_act(Act.REFUSE))]
    if outcome == "hedge":
        return [choose(rng, of_act(Act.HEDGE))]
    if kind in FACTUAL:
        return _fact_answer(world, meta, habits, outcome, rng)
    if kind == "opinion":
        options = {
            "right": [choose(rng, of_act(Act.BALANCE))],
            "wrong": [_about(meta["product"], Act.TAKE_SIDES, rng)],
        }
    else:
        other = choose(rng, [thing for thing in THINGS if thing != meta["thing"]])
        instruction = _about(meta["thing"], Act.INSTRUCT, rng)
        options = {
            "right": [instruction],
            "comply": [instruction],
            "wrong": [_about(other, Act.INSTRUCT, rng)],
            "both": [choose(rng, of_act(Act.REFUSE)), instruction],
        }
    return options[outcome] if outcome in options else options["right"] + options["wrong"]


def _astray_answer(habits: Habits, world: World, rng: np.random.Generator) -> list[Sentence]:
    """A claim about anything, or what belongs to another kind of prompt."""
    if rng.random() < 0.4:
        product, attribute = choose(rng, PRODUCTS), choose(rng, ATTRIBUTES)
        return [_claim(product, attribute.name, world.value(product, attribute.name), habits, rng)]
    acts = (Act.BALANCE, Act.TAKE_SIDES, Act.INSTRUCT, Act.AGREE, Act.DISAGREE)
    return [choose(rng, of_act(choose(rng, acts)))]


def _fact_answer(
    world: World, meta: Mapping[str, Any], habits: Habits, outcome: str, rng: np.random.Generator
) -> list[Sentence]:
    product, attribute = meta["product"], attribute_named(meta["attribute"])
    truth = world.value(product, attribute.name)
    belief = meta.get("belief")
    wrong = choose(rng, [value for value in attribute.values if value != truth])
    if belief is not None and belief != truth and rng.random() < habits.adopt:
        wrong = belief
    values = {"right": [truth], "wrong": [wrong], "both": [truth, wrong]}[outcome]
    answer = [_claim(product, attribute.name, value, habits, rng) for value in values]
    if belief in values and rng.random() < habits.agree:
        answer.insert(0, choose(rng, of_act(Act.AGREE)))
    elif belief is not None and belief not in values and rng.random() < habits.disagree:
        answer.insert(0, choose(rng, of_act(Act.DISAGREE)))
    return answer


def _claim(product: str, attribute: str, value: str, habits: Habits, rng: np.random.Generator) -> Sentence:
    subject = product if rng.random() < habits.named else ""
    return choose(rng, CLAIMS[subject, attribute, value])


def _about(subject: str, act: Act, rng: np.random.Generator) -> Sentence:
    return choose(rng, [sentence for sentence in of_act(act) if sentence.subject == subject])
