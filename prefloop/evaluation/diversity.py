"""How varied a policy's answers are: a collapsed policy says the same to everybody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

_WORD: Final = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and punctuation marks in lower case: the same unit whatever tokenizer a model has."""
    return _WORD.findall(text.lower())


def distinct_2(texts: Sequence[str]) -> float:
    """Distinct bigrams over all bigrams of all answers (Li et al. 2016); 0 when no answer has two words.

    It falls as the number of answers grows, so compare policies on the same prompts only.
    """
    bigrams = [pair for tokens in map(words, texts) for pair in pairwise(tokens)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def unique_responses(texts: Sequence[str]) -> float:
    """Share of answers that are different from each other, white space aside."""
    return len({" ".join(text.split()) for text in texts}) / len(texts) if texts else 0.0
