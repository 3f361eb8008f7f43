"""Near-duplicates and the rule for templates."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from prefloop.data.validation.near import (
    Bands,
    band_rows,
    jaccard,
    near_duplicates,
    same_template,
    shingles,
    words_of,
)

LONG = (
    "The quick brown fox jumps over the lazy dog while a small grey cat looks on from the old stone wall and "
    "wonders why anybody would run so fast on such a warm and quiet afternoon in the middle of the summer"
)


def test_shingles_and_jaccard_by_hand() -> None:
    left, right = shingles(words_of("a b c d")), shingles(words_of("A, b; c e"))
    assert left == {"a b c", "b c d"}
    assert jaccard(left, right) == pytest.approx(1 / 3)
    assert shingles(words_of("Only two")) == {"only two"}
    assert jaccard(set(), set()) == 1.0


@pytest.mark.parametrize(
    ("left", "right", "template"),
    [
        ("What colour is the lamp?", "What colour is the oven?", True),
        ("Add 12 and 30.", "Add 13 and 30.", True),
        ("What colour is the lamp?", "What colour is the lamps?", False),
        ("What colour is the lamp?", "What color is the lamp?", False),
        ("What colour is the lamp?", "what colour is the LAMP", False),
        ("What colour is the lamp?", "Hi, what colour is the lamp?", False),
        ("a b c d", "a x y z", False),
    ],
)
def test_what_counts_as_a_template(left: str, right: str, template: bool) -> None:
    assert same_template(words_of(left), words_of(right)) is template


def test_a_long_text_with_one_other_word_is_a_template_and_with_a_word_less_a_duplicate() -> None:
    other = LONG.replace("fox", "wolf")
    shorter = LONG.replace("quick ", "")
    assert jaccard(shingles(words_of(LONG)), shingles(words_of(other))) > 0.8
    assert not near_duplicates([words_of(LONG)], [words_of(other)], 0.8)
    assert near_duplicates([words_of(LONG)], [words_of(shorter)], 0.8)


def test_a_long_shared_prompt_does_not_make_other_answers_duplicates() -> None:
    prompt = words_of(LONG * 5)
    assert not near_duplicates([prompt, words_of("yes of course")], [prompt, words_of("no not at all")], 0.9)


def test_bands_find_a_pair_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.95):
        width = band_rows(128, threshold)
        assert 128 % width == 0
        assert 1 - (1 - threshold**width) ** (128 // width) >= 0.99


def test_planted_duplicates_are_found_among_many(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=60)) for _ in range(2000)]
    for copy, original in ((1500, 3), (1900, 700), (1999, 1998)):
        texts[copy] = texts[original].replace(" ", ", ", 5) + " again"
    bands = Bands(128, 0.9, tmp_path)
    for text in texts:
        bands.add([words_of(text)])
    found = bands.candidates()
    bands.close()
    assert {(1500, 3), (1900, 700), (1999, 1998)} <= set(found)
    assert len(found) < 20


def test_work_grows_with_the_rows_when_all_are_alike(tmp_path: Path) -> None:
    """3,000 equal rows have 4.5 million pairs; each row is held against two others at most."""
    bands = Bands(64, 0.9, tmp_path)
    for _ in range(3000):
        bands.add([words_of(LONG)])
    found = bands.candidates()
    bands.close()
    assert len(found) == 2 * 3000 - 3
    assert all(earlier < later for later, earlier in found)


def test_only_pairs_of_interest_are_candidates(tmp_path: Path) -> None:
    bands = Bands(64, 0.9, tmp_path)
    for _ in range(6):
        bands.add([words_of(LONG)])
    found = bands.candidates(lambda later, earlier: later % 2 != earlier % 2)
    bands.close()
    assert found
    assert all(later % 2 != earlier % 2 for later, earlier in found)
