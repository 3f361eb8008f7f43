"""Rows of the embedded world, in the formats that every other source of data uses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.errors import DataError
from prefloop.world.constants import KIND_SHARES
from prefloop.world.facts import World
from prefloop.world.prompts import Prompt, normalised, pool
from prefloop.world.raters import RATERS, Rater, ranks, utility
from prefloop.world.streams import choose, stream
from prefloop.world.text import Library
from prefloop.world.writers import CROWD, DEMONSTRATOR, Habits, write

Row = dict[str, Any]

_SOURCE = "world"
_TRIES = 1000
"""Draws a distinct completion may take before the crowd counts as unable to write it."""


def pretraining(world: World, documents: int, seed: int) -> Iterator[Row]:
    """Yields rows {"text"}, some with role tokens; facts asked in evaluation only are stated here."""
    library, rng = Library.of(world), stream(seed, "pretraining")
    for _ in range(documents):
        yield {"text": library.document(rng)}


def demonstrations(world: World, n: int, seed: int, *, habits: Habits = DEMONSTRATOR) -> Iterator[Row]:
    """Yields n rows {"id", "prompt", "completion", "source", "meta"} on distinct fitting prompts.

    Raises:
        DataError: the world has not so many distinct prompts (likewise in the functions below).
    """
    rng = stream(seed, "demonstrations")
    for prompt in _draw(world, n, "fit", rng):
        yield _row("demonstration", prompt, completion=write(world, prompt.meta, habits, rng))


def preferences(
    world: World,
    n: int,
    k: int,
    seed: int,
    kind_weights: Mapping[str, float] | None = None,
    *,
    habits: Habits = CROWD,
    raters: Sequence[Rater] = RATERS,
) -> Iterator[Row]:
    """Yields n rows with k distinct completions each, ranked by one rater of the panel.

    Args:
        world: what is true.
        n, k: prompts, and completions a prompt.
        seed: equal seeds give equal rows.
        kind_weights: relative weight of each prompt kind; None takes the world's shares.
        habits: how those who write the completions write.
        raters: the panel; each row is ranked by one of them, drawn uniformly.

    Yields:
        {"id", "prompt", "completions", "ranks" (0 is best, equal is a tie), "rater", "source", "meta"}.
    """
    rng = stream(seed, "preferences")
    for prompt in _draw(world, n, "fit", rng, kind_weights):
        completions = _distinct(world, prompt, k, habits, rng)
        rater = choose(rng, raters)
        utilities = [utility(world, prompt.meta, rater, text, rng) for text in completions]
        yield _row("preference", prompt, completions=completions, ranks=ranks(utilities), rater=rater.name)


def prompts(
    world: World, n: int, seed: int, kind_weights: Mapping[str, float] | None = None
) -> Iterator[Row]:
    """Yields n rows {"id", "prompt", "source", "meta"} for reinforcement learning."""
    for prompt in _draw(world, n, "rl", stream(seed, "prompts"), kind_weights):
        yield _row("prompt", prompt)


def evaluation(world: World, n: int, n_harmful: int, seed: int) -> Iterator[Row]:
    """Yields held-out rows {"id", "prompt", "source", "meta"}, all distinct: n in the world's shares,
    meta["panel"] "main", then n_harmful more harmful ones, panel "harmful". Facts never asked in training
    are among them."""
    rng = stream(seed, "evaluation")
    main = _draw(world, n, "evaluation", rng)
    taken = {prompt.text for prompt in main}
    for prompt in main:
        yield _row("evaluation", prompt, panel="main")
    harmful = [prompt for prompt in pool(world, "harmful", "evaluation") if prompt.text not in taken]
    for prompt in _sample(harmful, n_harmful, "harmful evaluation", rng):
        yield _row("evaluation", prompt, panel="harmful")


def quotas(n: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Splits n by weight, exactly (largest remainders; earlier names win ties)."""
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0:
        raise DataError(
            f"kind weights {dict(weights)} are not shares", "give weights >= 0 with a sum above 0"
        )
    exact = {name: n * weight / total for name, weight in weights.items()}
    counts = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    return counts


def _draw(
    world: World,
    n: int,
    use: str,
    rng: np.random.Generator,
    kind_weights: Mapping[str, float] | None = None,
) -> list[Prompt]:
    """Draws n distinct prompts of a use, kinds by quota, in random order; half of the beliefs true."""
    chosen: list[Prompt] = []
    for kind, count in quotas(n, kind_weights or dict(KIND_SHARES)).items():
        candidates = pool(world, kind, use) if count else []
        if kind in ("belief", "authority"):
            halves = (True, (count + 1) // 2), (False, count // 2)
            for belief_true, half in halves:
                matching = [prompt for prompt in candidates if prompt.meta["belief_true"] is belief_true]
                chosen += _sample(matching, half, f"{kind} {use}", rng)
        else:
            chosen += _sample(candidates, count, f"{kind} {use}", rng)
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _sample(candidates: Sequence[Prompt], count: int, what: str, rng: np.random.Generator) -> list[Prompt]:
    if count > len(candidates):
        raise DataError(
            f"the embedded world has {len(candidates)} distinct {what} prompts, not {count}",
            "ask for fewer rows in section ingest.world of params.yaml",
        )
    return [candidates[i] for i in rng.permutation(len(candidates))[:count]]


def _distinct(world: World, prompt: Prompt, k: int, habits: Habits, rng: np.random.Generator) -> list[str]:
    found: dict[str, None] = {}
    for _ in range(_TRIES):
        found.setdefault(write(world, prompt.meta, habits, rng))
        if len(found) == k:
            return list(found)
    raise DataError(
        f"{_TRIES} draws gave {len(found)} distinct completions of {prompt.text!r}, not {k}",
        "ask for fewer completions a prompt",
    )


def _row(name: str, prompt: Prompt, *, panel: str = "", **fields: Any) -> Row:
    digest = hashlib.sha256(normalised(prompt.text).encode()).hexdigest()[:12]
    meta = dict(prompt.meta) | ({"panel": panel} if panel else {})
    return {"id": f"{name}-{digest}", "prompt": prompt.text, **fields, "source": _SOURCE, "meta": meta}
