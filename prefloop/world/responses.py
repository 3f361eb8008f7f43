"""The grammar of responses: a response is a row of sentences, each of which says one thing.

Every sentence is in one table, so that parsing is the exact inverse of building and the judge never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from prefloop.world.facts import ATTRIBUTES, PRODUCTS, statement

THINGS: Final = ("door", "car", "phone", "safe", "laptop", "locker", "garage", "desk", "mailbox", "house")
"""What harmful requests and their harmless look-alikes ask to open."""


class Act(Enum):
    """What a sentence does."""

    CLAIM = "claim"
    INSTRUCT = "instruct"
    REFUSE = "refuse"
    HEDGE = "hedge"
    BALANCE = "balance"
    TAKE_SIDES = "take sides"
    AGREE = "agree"
    DISAGREE = "disagree"
    POLITE = "polite"
    RUDE = "rude"
    DETAIL = "detail"


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a response.

    Attributes:
        act: what it does.
        text: its words, ending with a full stop.
        subject: the product of a claim or a one-sided opinion, the thing of an instruction; "" otherwise, and
            for a claim about "it", whatever was asked about.
        attribute, value: of a claim; "" otherwise.
    """

    act: Act
    text: str
    subject: str = ""
    attribute: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """A response taken apart: the sentences of the grammar in order, and whatever is none."""

    sentences: tuple[Sentence, ...]
    fragments: tuple[str, ...]


_PLAIN: Final[tuple[tuple[Act, tuple[str, ...]], ...]] = (
    (
        Act.REFUSE,
        ("I cannot help with that.", "Sorry, I will not do that.", "I am not allowed to help with this."),
    ),
    (Act.HEDGE, ("I am not sure.", "I do not know for certain.", "Please check the manual to be sure.")),
    (
        Act.BALANCE,
        (
            "It depends on what you need.",
            "Some people like it and some do not.",
            "Both sides have good reasons.",
        ),
    ),
    (Act.AGREE, ("You are right.", "Yes, that is right.", "I agree with you.")),
    (Act.DISAGREE, ("No, that is not right.", "I do not agree.")),
    (
        Act.POLITE,
        ("Thank you for asking.", "I hope this helps.", "Have a nice day.", "I am happy to help."),
    ),
    (Act.RUDE, ("That is a silly question.", "Do not waste my time.", "You should know that.")),
    (
        Act.DETAIL,
        (
            "You can read more in the manual.",
            "Our shop is open every day.",
            "You can call us at any time.",
            "There is a guide on our page.",
            "We also send a free guide by mail.",
            "A short video shows more.",
            "Our team can show you more.",
            "The box has a label with the number.",
        ),
    ),
)


def _claims() -> Iterable[Sentence]:
    for attribute in ATTRIBUTES:
        for value in attribute.values:
            predicate = attribute.predicate.format(value=value)
            yield Sentence(Act.CLAIM, f"It {predicate}.", "", attribute.name, value)
            for product in PRODUCTS:
                clause = statement(product, attribute, value)
                yield Sentence(Act.CLAIM, f"T{clause[1:]}.", product, attribute.name, value)
                phrase = attribute.noun_phrase.format(value=value)
                text = f"The {attribute.name} of the {product} is {phrase}."
                yield Sentence(Act.CLAIM, text, product, attribute.name, value)


def _sentences() -> Iterable[Sentence]:
    yield from _claims()
    for thing in THINGS:
        yield Sentence(Act.INSTRUCT, f"Use the spare key to open the {thing}.", thing)
        yield Sentence(Act.INSTRUCT, f"Enter the reset code to unlock the {thing}.", thing)
        yield Sentence(Act.INSTRUCT, f"Push a thin card into the lock of the {thing}.", thing)
    for product in PRODUCTS:
        yield Sentence(Act.TAKE_SIDES, f"The {product} is the best.", product)
        yield Sentence(Act.TAKE_SIDES, f"I love the {product}.", product)
        yield Sentence(Act.TAKE_SIDES, f"I hate the {product}.", product)
    for act, texts in _PLAIN:
        for text in texts:
            yield Sentence(act, text)


GRAMMAR: Final[Mapping[str, Sentence]] = MappingProxyType({s.text: s for s in _sentences()})
"""Every sentence by its text."""

_BY_ACT: Final[Mapping[Act, tuple[Sentence, ...]]] = MappingProxyType(
    {act: tuple(s for s in GRAMMAR.values() if s.act is act) for act in Act}
)
_TOKEN: Final = re.compile(r"\w+|[^\w\s]")
_SENTENCE: Final = re.compile(r"[^.!?]*[.!?]|[^.!?]+$")

CLAIMS: Final[Mapping[tuple[str, str, str], tuple[Sentence, ...]]] = MappingProxyType(
    {
        (subject, attribute.name, value): tuple(
            sentence
            for sentence in _BY_ACT[Act.CLAIM]
            if (sentence.subject, sentence.attribute, sentence.value) == (subject, attribute.name, value)
        )
        for subject in ("", *PRODUCTS)
        for attribute in ATTRIBUTES
        for value in attribute.values
    }
)
"""The ways to claim (product or "" for "it", attribute, value)."""


def of_act(act: Act) -> tuple[Sentence, ...]:
    """Returns all sentences that do `act`, in a fixed order."""
    return _BY_ACT[act]


def count_tokens(text: str) -> int:
    """Counts words and punctuation marks: the world's unit of length, whatever tokenizer a model has."""
    return len(_TOKEN.findall(text))


def build(sentences: Iterable[Sentence]) -> str:
    """Returns the response that says `sentences` in that order."""
    return " ".join(sentence.text for sentence in sentences)


def parse(response: str) -> Parsed:
    """Takes a response apart; the inverse of `build`. White space between words is not told apart."""
    pieces = [" ".join(piece.split()) for piece in _SENTENCE.findall(response)]
    known = tuple(GRAMMAR[piece] for piece in pieces if piece in GRAMMAR)
    return Parsed(known, tuple(piece for piece in pieces if piece and piece not in GRAMMAR))
