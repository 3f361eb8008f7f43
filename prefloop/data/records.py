"""Rows of every kind: their shape, their parts, and what "the same prompt" means.

Every kind is JSON Lines. `prompt` and completions are strings or lists of `{"role", "content"}`.

| kind | keys |
| --- | --- |
| text | `text` |
| demonstrations | `prompt`, `completion` |
| preferences, judge | `prompt`, `chosen`, `rejected`; or `prompt`, `completions`, `ranks` |
| unpaired | `prompt`, `completion`, `label` |
| prompts, evaluation | `prompt` |
| held_out | a row to be fitted on whose prompt is for RL or evaluation: kept, never fitted on |

Rank 0 is best, equal ranks are ties. Optional everywhere: `id`, `rater`, `source`, `line`, `round`, `policy`,
`margin`, `probability`, `both_bad`, `skipped`, `meta`. A row `{"invalid": reason, "raw", "source", "line"}`
stands for one that an importer could not read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Row = dict[str, Any]
Messages = list[dict[str, str]]

DERIVING: Final = ("demonstrations", "preferences", "judge")
"""Kinds that say what a good answer is: rows of other kinds may be derived from theirs."""
FITTING: Final = (*DERIVING, "unpaired")
"""Kinds whose prompts are fitted on."""
HELD_OUT: Final = ("prompts", "evaluation")
"""Kinds that are prompts alone, with the use that they are for."""
KINDS: Final = ("text", *FITTING, "prompts", "evaluation", "held_out")
"""What the stages pass on."""

COMPARISONS: Final = ("preferences", "judge", "held_out")


@dataclass(frozen=True, slots=True)
class Example:
    """The parts of a row, with strings turned into messages.

    Attributes:
        prompt: messages before the answer; empty for text.
        completions: one list of messages a completion, in the row's order; empty for prompts; for text, the
            text.
        ranks: rank of each completion, 0 is best; empty where nothing is compared.
    """

    prompt: Messages
    completions: list[Messages]
    ranks: list[int]

    @property
    def tied(self) -> bool:
        """True if nothing is preferred to anything."""
        return len(set(self.ranks)) <= 1


def parse_row(kind: str, row: Mapping[str, Any]) -> Example:
    """Takes a row apart.

    Args:
        kind: one of `KINDS`.
        row: as read from JSON.

    Raises:
        ValueError: a key is missing or has a wrong type; the message names it.
    """
    if kind == "text":
        return Example([], [[{"role": "text", "content": _text(row, "text")}]], [])
    prompt = parse_messages(_key(row, "prompt"), "user", "prompt")
    if kind in ("prompts", "evaluation"):
        return Example(prompt, [], [])
    if kind in ("demonstrations", "unpaired") or (kind == "held_out" and "completion" in row):
        if kind == "unpaired" and not isinstance(_key(row, "label"), bool):
            raise ValueError(f"label must be true or false, got {row['label']!r}")
        return Example(prompt, [parse_messages(_key(row, "completion"), "assistant", "completion")], [])
    if kind in COMPARISONS:
        return _comparison(prompt, row)
    raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")


def _comparison(prompt: Messages, row: Mapping[str, Any]) -> Example:
    for name in ("margin", "probability"):
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name} must be a number, got {value!r}")
    if not 0 <= (row.get("probability") or 0) <= 1:
        raise ValueError(f"probability must lie between 0 and 1, got {row['probability']!r}")
    if "completions" not in row:
        pair = [parse_messages(_key(row, name), "assistant", name) for name in ("chosen", "rejected")]
        return Example(prompt, pair, [0, 1])
    completions, ranks = row["completions"], _key(row, "ranks")
    if not isinstance(completions, list) or len(completions) < 2:
        raise ValueError("completions must be a list of at least two")
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
        raise ValueError(f"ranks must be a list of whole numbers of at least 0, got {ranks!r}")
    if len(ranks) != len(completions):
        raise ValueError(f"{len(completions)} completions have {len(ranks)} ranks")
    return Example(prompt, [parse_messages(c, "assistant", "completions") for c in completions], ranks)


def parse_messages(value: Any, role: str, name: str) -> Messages:
    """A string becomes one message of `role`; a list of messages is checked.

    Raises:
        ValueError: neither; `name` is named.
    """
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be text or a list of messages, got {_shown(value)}")
    for message in value:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise ValueError(f"{name}: a message needs role and content as text, got {_shown(message)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _key(row: Mapping[str, Any], name: str) -> Any:
    if name not in row:
        raise ValueError(f"{name} is missing; the row has {', '.join(sorted(map(str, row))) or 'no keys'}")
    return row[name]


def _text(row: Mapping[str, Any], name: str) -> str:
    value = _key(row, name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def plain(messages: Messages) -> str:
    """The messages as one text: a single one by its content, several with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def normalise(text: str) -> str:
    """Lower case, white space collapsed."""
    return " ".join(text.lower().split())


def normalised_prompt(messages: Messages) -> str:
    """What two prompts share when they are the same prompt."""
    return normalise(plain(messages))


def opening(messages: Messages) -> str:
    """The normalised first user turn. Transcripts that grow from one opening belong to one conversation."""
    first = next(
        (message for message in messages if message["role"] == "user"), messages[0] if messages else None
    )
    return normalise(first["content"]) if first else ""


def point_of(text: str) -> float:
    """Maps a text to [0, 1): the first 64 bits of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


def split_of(messages: Messages, *, fit: float, rl: float, judge: float = 0.0) -> str:
    """The one use, "fit", "judge", "rl" or "evaluation", that a prompt belongs to.

    A hash of the conversation's opening decides, so that appended rows move nobody, and a longer transcript
    of the same conversation never lands in another split. (Equal prompts have equal openings.)

    Args:
        messages: the prompt.
        fit, rl: shares of prompts for fitting (judge included) and for reinforcement learning; evaluation has
            the rest.
        judge: share of the fitting prompts that only the independent judge is fitted on.
    """
    text = opening(messages)
    point = point_of(text)
    if point < fit:
        return "judge" if judge and point_of("judge\n" + text) < judge else "fit"
    return "rl" if point < fit + rl else "evaluation"


def key_of(*parts: str) -> int:
    """A 64-bit key of some texts, for counting what is equal in bounded memory."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass"))
        digest.update(b"\x00")
    return int.from_bytes(digest.digest(), "little")


def content_id(row: Mapping[str, Any]) -> str:
    """An id made from what a row says: equal rows get equal ids, wherever they stand."""
    said = {key: value for key, value in row.items() if key not in ("id", "source", "line")}
    canonical = json.dumps(said, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
