"""What is measured of rows, pairs and texts, against values worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prefloop.data.records import parse_row
from prefloop.data.validation.features import content_key, count_words, measure
from prefloop.data.validation.pairs import PairLog, krippendorff_alpha
from prefloop.data.validation.patterns import damage, is_card_number, personal_data, secrets

GOOD: dict[str, Any] = {"prompt": "Which one?", "chosen": "This one.", "rejected": "That one."}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def faults(row: dict[str, Any], kind: str = "preferences") -> dict[str, str]:
    notes = dict(measure(kind, row).notes)
    notes.pop("length", None)
    return notes


def test_a_good_row_has_no_fault() -> None:
    assert faults(GOOD) == {}
    system = [turn("system", "Be kind."), turn("user", "a"), turn("assistant", "b"), turn("user", "c")]
    assert faults({**GOOD, "prompt": system}) == {}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"invalid": "no JSON"}, "readable", "no JSON"),
        ({"chosen": 3}, "schema", "chosen must be text"),
        ({"prompt": " \n"}, "prompt_not_empty", "turn 1 of the prompt"),
        ({"chosen": "\t"}, "completion_not_empty", "chosen is empty"),
        ({"rejected": "This one."}, "completions_differ", "chosen and rejected are equal"),
        (
            {"chosen": [turn("assistant", "a"), turn("user", "b"), turn("assistant", "c")]},
            "same_prompt",
            "3 turns",
        ),
        (
            {"prompt": [turn("user", "a"), turn("user", "b")]},
            "roles_alternate",
            "turn 2 of the prompt is by user",
        ),
        (
            {"prompt": [turn("user", "a"), turn("assistant", "b")]},
            "roles_alternate",
            "does not end on a user",
        ),
        ({"chosen": [turn("user", "a")]}, "ends_with_assistant", "chosen ends on a turn by user"),
        ({"chosen": "caf\ufffd"}, "encoding", "U+FFFD"),
        ({"chosen": "key AKIAIOSFODNN7EXAMPLE"}, "no_secrets", "AWS access key AKIA…"),
        ({"prompt": "write to jo@example.org"}, "no_personal_data", "e-mail address jo@e…"),
    ],
)
def test_each_fault_speaks_to_its_expectation(change: dict[str, Any], name: str, words: str) -> None:
    found = faults({**GOOD, **change})
    assert list(found) == [name]
    assert words in found[name]


def test_ranked_rows_may_tie_on_equal_texts_but_not_differ_in_rank() -> None:
    ranked = {"prompt": "p", "completions": ["a", "a", "b"], "ranks": [0, 0, 1]}
    assert faults(ranked) == {}
    assert "completion 1 and completion 2" in faults({**ranked, "ranks": [0, 1, 1]})["completions_differ"]


def test_length_is_the_prompt_and_the_longest_completion() -> None:
    assert count_words("It's 3 o'clock.") == 8  # It ' s 3 o ' clock .
    row = {"prompt": "a b", "completions": ["c", "d e f!"], "ranks": [0, 1]}
    assert measure("preferences", row).columns["tokens"] == 2 + 4


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("plain", 0),
        ("naïve café – “quoted” ¡Olé! Ärger", 0),
        ("日本語 русский 😀", 0),
        ("tab\tand\nline\r\n", 0),
        ("cafÃ©", 1),
        ("donâ€™t", 1),
        ("ðŸ˜€", 1),
        ("bell\x07", 1),
        ("half \ufffd\ufffd", 2),
        ("c1 \x85", 1),
    ],
)
def test_damaged_encoding(text: str, signs: int) -> None:
    assert len(list(damage(text))) == signs


@pytest.mark.parametrize(
    ("number", "right"),
    [
        ("4111 1111 1111 1111", True),
        ("378282246310005", True),
        ("4111 1111 1111 1112", False),
        ("1234567", False),
        ("0000 0000 0000 0000", False),
    ],
)
def test_luhn(number: str, right: bool) -> None:
    assert is_card_number(number) is right


def test_secrets_and_personal_data_are_found_and_masked() -> None:
    text = "pay 4111-1111-1111-1111, mail a.b@c.example.com, call (202) 555-0143 or +44 20 7946 0958"
    assert list(secrets(text)) == ["card number 4111… (19 characters)"]
    assert [found.split()[0] for found in personal_data(text)] == ["e-mail", "phone", "phone"]
    assert not any("555-0143" in found for found in personal_data(text))
    harmless = (
        "In 1914 - 1918, 100.000.000 of 3.14159265358979, v1.2.3, 2024-05-01 10:00, ISBN 978-3-16-148410-0"
    )
    assert list(secrets(harmless)) == []
    assert list(personal_data(harmless)) == []


def test_krippendorff_alpha_of_the_textbook() -> None:
    """Krippendorff 2011, section A: two observers, ten units, two values: alpha = 0.095."""
    first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    counts = np.array([[(a == v) + (b == v) for v in (0, 1)] for a, b in zip(first, second, strict=True)])
    assert krippendorff_alpha(counts) == pytest.approx(0.095, abs=5e-4)


def test_krippendorff_alpha_without_doubt_or_without_units() -> None:
    assert krippendorff_alpha(np.array([[2, 0], [0, 2]])) == 1.0
    assert krippendorff_alpha(np.array([[2, 0], [3, 0]])) is None
    assert krippendorff_alpha(np.empty((0, 2), np.int64)) is None


def log(*rows: dict[str, Any]) -> PairLog:
    pairs = PairLog()
    for position, row in enumerate(rows):
        pairs.add(position, row, parse_row("preferences", row), count_words)
    return pairs


def test_opposite_preferences_of_one_rater_contradict_and_of_two_raters_do_not() -> None:
    turned = {**GOOD, "prompt": "which  ONE?", "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    assert log(GOOD, turned).contradictions(2).tolist() == [1, 0]
    assert log({**GOOD, "rater": "x"}, {**turned, "rater": "x"}).contradictions(2).tolist() == [1, 0]
    assert log({**GOOD, "rater": "x"}, {**turned, "rater": "y"}).contradictions(2).tolist() == [-1, -1]
    ranked = {"prompt": "which one?", "completions": ["That one.", "Else.", "This one."], "ranks": [0, 1, 2]}
    assert log(GOOD, GOOD, ranked).contradictions(3).tolist() == [2, 2, 0]


def test_agreement_and_the_pull_of_length() -> None:
    rows = [{**GOOD, "rater": "x"}, {**GOOD, "rater": "y"}, {**GOOD, "prompt": "other", "rater": "x"}]
    alpha, several = log(*rows).agreement()
    assert (alpha, several) == (None, 1)  # one value throughout: agreement cannot be told from habit
    long = {"prompt": "p", "completions": ["one two three", "one", "one two"], "ranks": [0, 1, 1]}
    assert log(long).longer_share == 1.0
    assert log(long).ties == 1
    assert len(log({**GOOD, "both_bad": True}, {**GOOD, "skipped": True})) == 0


def test_the_content_key_knows_ranks_and_raters_but_not_order() -> None:
    def key(**row: Any) -> int:
        return content_key("preferences", row, parse_row("preferences", row))

    base = key(prompt="p", completions=["a", "b"], ranks=[0, 1])
    assert base == key(prompt=" P ", completions=["B", "A"], ranks=[1, 0])
    assert base == key(prompt="p", chosen="a", rejected="b")
    assert base != key(prompt="p", chosen="b", rejected="a")
    assert base != key(prompt="p", chosen="a", rejected="b", rater="x")
