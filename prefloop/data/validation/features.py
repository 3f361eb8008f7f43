"""What is measured of one row, and how a measurement reads when it breaks an expectation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from prefloop.data.records import Example, Messages, Row, key_of, normalise, parse_row, plain
from prefloop.data.validation import patterns

CountTokens = Callable[[str], int]

COLUMNS: Final = {
    "readable": "unreadable",
    "schema": "misshapen",
    "prompt_not_empty": "empty_prompt",
    "completion_not_empty": "empty_completions",
    "completions_differ": "equal_completions",
    "same_prompt": "extra_turns",
    "roles_alternate": "role_breaks",
    "ends_with_assistant": "foreign_endings",
    "length": "tokens",
    "encoding": "damages",
    "no_secrets": "secrets",
    "no_personal_data": "personal_data",
}
"""The column in which each expectation about one row looks; all but `tokens` count faults."""

_WORD: Final = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Measured:
    """One row and what was measured of it.

    Attributes:
        example: its parts, or None if it has none.
        columns: the values for `COLUMNS`; those that could not be measured are left out.
        notes: for each expectation that a fault speaks to, the words that say what is wrong.
    """

    example: Example | None
    columns: dict[str, int]
    notes: dict[str, str]


def count_words(text: str) -> int:
    """Words and punctuation marks: a cheap stand-in for tokens."""
    return len(_WORD.findall(text))


def measure(kind: str, row: Row, count_tokens: CountTokens = count_words) -> Measured:
    """Measures one row.

    Args:
        kind: one of `prefloop.data.records.KINDS`.
        row: as read.
        count_tokens: length of a text, in tokens.
    """
    if "invalid" in row:
        return Measured(None, {"unreadable": 1}, {"readable": str(row["invalid"])})
    try:
        example = parse_row(kind, row)
    except ValueError as error:
        return Measured(None, {"unreadable": 0, "misshapen": 1}, {"schema": str(error)})
    found = {name: list(faults) for name, faults in _faults(kind, example)}
    columns = {COLUMNS[name]: len(faults) for name, faults in found.items()}
    notes = {name: "; ".join(faults[:3]) for name, faults in found.items() if faults}
    columns["tokens"] = _tokens(example, count_tokens)
    notes["length"] = f"{columns['tokens']} tokens"
    return Measured(example, {"unreadable": 0, "misshapen": 0, **columns}, notes)


def _faults(kind: str, example: Example) -> Iterator[tuple[str, Iterator[str]]]:
    """Yields each expectation of the kind with its faults in this row."""
    texts = [m["content"] for m in chain(example.prompt, *example.completions)]
    yield "encoding", chain.from_iterable(map(patterns.damage, texts))
    yield "no_secrets", chain.from_iterable(map(patterns.secrets, texts))
    yield "no_personal_data", chain.from_iterable(map(patterns.personal_data, texts))
    if kind != "text":
        yield "prompt_not_empty", _empty_turns(example.prompt)
        yield "roles_alternate", _role_breaks(example)
    if example.completions:
        yield "completion_not_empty", _empty_completions(example)
    if example.completions and kind != "text":
        yield "ends_with_assistant", _foreign_endings(example)
    if example.ranks:
        yield "completions_differ", _equal_completions(example)
        yield "same_prompt", _extra_turns(example)


def _empty_turns(messages: Messages) -> Iterator[str]:
    for number, message in enumerate(messages, start=1):
        if not message["content"].strip():
            yield f"turn {number} of the prompt ({message['role']}) is empty"


def _empty_completions(example: Example) -> Iterator[str]:
    for number, completion in enumerate(example.completions):
        if any(not message["content"].strip() for message in completion):
            yield f"{_name(example, number)} is empty"


def _equal_completions(example: Example) -> Iterator[str]:
    for i, left in enumerate(example.completions):
        for j in range(i + 1, len(example.completions)):
            if example.ranks[i] != example.ranks[j] and left == example.completions[j]:
                yield f"{_name(example, i)} and {_name(example, j)} are equal"


def _extra_turns(example: Example) -> Iterator[str]:
    for number, completion in enumerate(example.completions):
        if len(completion) > 1:
            yield f"{_name(example, number)} has {len(completion)} turns: it parts before the last one"


def _role_breaks(example: Example) -> Iterator[str]:
    turns = example.prompt[1:] if example.prompt[0]["role"] == "system" else example.prompt
    for number, message in enumerate(turns, start=1):
        wanted = "user" if number % 2 else "assistant"
        if message["role"] != wanted:
            yield f"turn {number} of the prompt is by {message['role']}, not {wanted}"
            return
    if len(turns) % 2 == 0:
        yield "the prompt does not end on a user turn"
    for number, completion in enumerate(example.completions):
        for turn, message in enumerate(completion[:-1]):
            wanted = "user" if turn % 2 else "assistant"
            if message["role"] != wanted:
                yield f"turn {turn + 1} of {_name(example, number)} is by {message['role']}, not {wanted}"
                return


def _foreign_endings(example: Example) -> Iterator[str]:
    for number, completion in enumerate(example.completions):
        if completion[-1]["role"] != "assistant":
            yield f"{_name(example, number)} ends on a turn by {completion[-1]['role']}"


def _name(example: Example, number: int) -> str:
    if not example.ranks:
        return "the completion"
    return ("chosen", "rejected")[number] if example.ranks == [0, 1] else f"completion {number + 1}"


def _tokens(example: Example, count_tokens: CountTokens) -> int:
    """Prompt plus the longest completion."""
    longest = max((sum(count_tokens(m["content"]) for m in c) for c in example.completions), default=0)
    return sum(count_tokens(message["content"]) for message in example.prompt) + longest


def content_key(kind: str, row: Row, example: Example) -> int:
    """A key of what a row says; case, white space, the order of completions and origin do not count."""
    parts = [normalise(plain(example.prompt))] if example.prompt else []
    texts = [normalise(plain(completion)) for completion in example.completions]
    if example.ranks:
        parts += [f"{rank} {text}" for rank, text in sorted(zip(example.ranks, texts, strict=True))]
        parts.append(str(row.get("rater") or ""))
    else:
        parts += texts
        if kind == "unpaired":
            parts += [str(row["label"]), str(row.get("rater") or "")]
    return key_of(*parts)
