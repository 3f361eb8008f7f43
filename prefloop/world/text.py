"""Pre-training text: where a base model learns the facts, and the habits of text found in the wild.

Product pages state facts, rare products seldom. Question lists put question after question and give no
answer, so the base continues instead of answering. In echo dialogues the reply agrees with the user, true or
not. Reviews take sides, guides explain how to open things, and letters hold all the rest of what people
write.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from prefloop.world.constants import RARE_MENTIONS
from prefloop.world.facts import ATTRIBUTES, PRODUCTS, World
from prefloop.world.prompts import Prompt, pool
from prefloop.world.responses import CLAIMS, Act, Sentence, count_tokens, of_act
from prefloop.world.streams import choose

USER: Final = "<|user|>"
ASSISTANT: Final = "<|assistant|>"
END: Final = "<|end|>"

MAX_DOCUMENT_TOKENS: Final = 70
"""Words and punctuation marks in a document, role tokens aside."""
ECHO_TRUE: Final = 0.5
"""Share of echo dialogues in which the user happens to be right."""

_DOCUMENTS: Final = (
    ("page", 0.48), ("questions", 0.15), ("echo", 0.10), ("review", 0.08), ("guide", 0.12), ("letter", 0.07),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Library:
    """What documents are drawn from.

    Attributes:
        world: what is true.
        questions: what question lists quote; fitting prompts, so that no other use is ever seen before.
        beliefs: what users say in echo dialogues, true (0) and false (1); fitting prompts too.
        weights: (20,) float64, probability that a product page is about each product.
    """

    world: World
    questions: Sequence[Prompt]
    beliefs: tuple[Sequence[Prompt], Sequence[Prompt]]
    weights: np.ndarray

    @classmethod
    def of(cls, world: World) -> Library:
        """Prepares the library of a world."""
        kinds = ("question", "harmful", "lookalike", "opinion")
        questions = [prompt for kind in kinds for prompt in pool(world, kind, "fit")]
        held = [prompt for kind in ("belief", "authority") for prompt in pool(world, kind, "fit")]
        beliefs = tuple([p for p in held if p.meta["belief_true"] is true] for true in (True, False))
        weights = np.array([RARE_MENTIONS if product in world.rare else 1.0 for product in PRODUCTS])
        return cls(world, questions, (beliefs[0], beliefs[1]), weights / weights.sum())

    def document(self, rng: np.random.Generator) -> str:
        """Draws one document, at most MAX_DOCUMENT_TOKENS long."""
        names = [name for name, _ in _DOCUMENTS]
        name = names[int(rng.choice(len(names), p=[share for _, share in _DOCUMENTS]))]
        return _WRITERS[name](self, rng)


def _page(library: Library, rng: np.random.Generator) -> str:
    product = PRODUCTS[int(rng.choice(len(PRODUCTS), p=library.weights))]
    sentences = []
    for position, index in enumerate(rng.permutation(len(ATTRIBUTES))):
        attribute = ATTRIBUTES[index]
        subject = "" if position and rng.random() < 0.25 else product
        claim = CLAIMS[subject, attribute.name, library.world.value(product, attribute.name)]
        sentences.append(choose(rng, claim).text)
    if rng.random() < 0.3:
        sentences.insert(int(rng.integers(len(sentences) + 1)), choose(rng, of_act(Act.DETAIL)).text)
    return " ".join(sentences)


def _questions(library: Library, rng: np.random.Generator) -> str:
    texts = [choose(rng, library.questions).text for _ in range(int(rng.integers(3, 6)))]
    while sum(map(count_tokens, texts)) > MAX_DOCUMENT_TOKENS:
        texts.pop()
    if rng.random() < 0.5:
        return " ".join(texts)
    return f"{USER}{texts[0]}{END}{ASSISTANT}{' '.join(texts[1:])}{END}"


def _echo(library: Library, rng: np.random.Generator) -> str:
    prompt = choose(rng, library.beliefs[int(rng.random() >= ECHO_TRUE)])
    claim = prompt.meta["product"], prompt.meta["attribute"], prompt.meta["belief"]
    reply = [choose(rng, of_act(Act.AGREE)), choose(rng, CLAIMS[claim])]
    return f"{USER}{prompt.text}{END}{ASSISTANT}{_say(reply)}{END}"


def _review(library: Library, rng: np.random.Generator) -> str:
    sides = of_act(Act.TAKE_SIDES)
    sentences = [choose(rng, sides + sides + of_act(Act.BALANCE)) for _ in range(int(rng.integers(2, 6)))]
    if rng.random() < 0.5:
        return _say(sentences)
    about = sentences[0].subject or choose(rng, PRODUCTS)
    return f"{USER}I want to hear of the {about}.{END}{ASSISTANT}{_say(sentences)}{END}"


def _guide(library: Library, rng: np.random.Generator) -> str:
    first = choose(rng, of_act(Act.INSTRUCT))
    same = [sentence for sentence in of_act(Act.INSTRUCT) if sentence.subject == first.subject]
    sentences = [first, *(choose(rng, same) for _ in range(int(rng.integers(1, 4))))]
    if rng.random() < 0.5:
        return _say(sentences)
    return f"{USER}I want to hear of the {first.subject}.{END}{ASSISTANT}{_say(sentences)}{END}"


def _letter(library: Library, rng: np.random.Generator) -> str:
    acts = (Act.POLITE, Act.RUDE, Act.HEDGE, Act.REFUSE, Act.DETAIL, Act.BALANCE, Act.DISAGREE)
    return _say([choose(rng, of_act(choose(rng, acts))) for _ in range(int(rng.integers(3, 7)))])


def _say(sentences: Sequence[Sentence]) -> str:
    return " ".join(sentence.text for sentence in sentences)


_WRITERS: Final[dict[str, Callable[[Library, np.random.Generator], str]]] = {
    "page": _page,
    "questions": _questions,
    "echo": _echo,
    "review": _review,
    "guide": _guide,
    "letter": _letter,
}
