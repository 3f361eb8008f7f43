"""Keeping a share of prompts apart, chosen by a hash of the prompt so that added rows move nobody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any


def prompt_text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A prompt as one normalised string: lower case, single spaces, roles named."""
    text = prompt if isinstance(prompt, str) else json.dumps([[m["role"], m["content"]] for m in prompt])
    return " ".join(text.lower().split())


def held_out(prompt: str | Sequence[Mapping[str, str]], share: float, purpose: str) -> bool:
    """True for about `share` of all prompts; the choice depends on the prompt and the purpose alone."""
    digest = hashlib.sha256(f"{purpose}\n{prompt_text(prompt)}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64 < share


def split_holdout(
    rows: Sequence[dict[str, Any]], share: float, purpose: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(kept for fitting, held out)."""
    kept: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    for row in rows:
        (apart if held_out(row["prompt"], share, purpose) else kept).append(row)
    return kept, apart
