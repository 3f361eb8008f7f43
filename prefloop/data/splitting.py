"""Which use a prompt belongs to, when several sources and explicit sets of prompts meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from prefloop.config.ingest import IngestConfig
from prefloop.data.records import (
    DERIVING,
    FITTING,
    HELD_OUT,
    Messages,
    Row,
    key_of,
    normalised_prompt,
    parse_messages,
    split_of,
)
from prefloop.data.sources import Source

_USE_OF_KIND: Final = {"prompts": "rl", "evaluation": "evaluation"}
_KIND_OF_USE: Final = {"rl": "prompts", "evaluation": "evaluation", "fit": "fitting", "judge": "fitting"}


@dataclass(frozen=True)
class Place:
    """Where a prompt belongs.

    Attributes:
        use: "fit", "judge", "rl" or "evaluation".
        taken: the kind that had the prompt first, where a set of prompts names it explicitly; "" otherwise.
    """

    use: str
    taken: str = ""


@dataclass(frozen=True)
class Plan:
    """How the sources share the prompts.

    Attributes:
        derivers: positions of the sources whose comparisons also give what `derived` names.
        derived: kinds without a source of their own.
        claims: for each explicitly named prompt (by key), the position of the source and the use that had it
            first.
    """

    config: IngestConfig
    derivers: frozenset[int]
    derived: frozenset[str]
    claims: Mapping[int, tuple[int, int, str]]

    def place(self, prompt: Messages) -> Place:
        """The use of a prompt that is to be fitted on, if it may be."""
        claim = self.claims.get(key_of(normalised_prompt(prompt)))
        if claim is not None and claim[2] in _USE_OF_KIND.values():
            return Place(claim[2], _KIND_OF_USE[claim[2]])
        return Place(self._hashed(prompt))

    def refusal(self, kind: str, prompt: Messages) -> str:
        """Why an explicitly named prompt of `kind` cannot be used as such, or ""."""
        claim = self.claims.get(key_of(normalised_prompt(prompt)))
        if claim is None or claim[2] == _USE_OF_KIND[kind]:
            return ""
        return f"prompt also in {_KIND_OF_USE[claim[2]]}"

    def _hashed(self, prompt: Messages) -> str:
        """Shares of kinds that have a source of their own fall to fitting."""
        return _hashed(prompt, self.config, self.derived)


def make_plan(sources: Sequence[Source], config: IngestConfig) -> Plan:
    """Decides what is derived from what, and who had a prompt first.

    Only what stands before, or in, the first source with something to derive from decides what is derived:
    sources added later change neither that nor anybody's split.
    """
    fitting = [i for i, source in enumerate(sources) if any(kind in source.kinds for kind in DERIVING)]
    first = fitting[0] if fitting else 0
    looked_at = sources[: first + 1] if config.derive == "first" else sources
    explicit = {kind for source in looked_at for kind in source.kinds}
    derived = frozenset(kind for kind in ("demonstrations", *HELD_OUT) if kind not in explicit)
    derivers = frozenset(fitting[:1] if config.derive == "first" else fitting)
    return Plan(config, derivers, derived, _claims(sources, config, derived))


def prompt_of(row: Row) -> Messages | None:
    """The row's prompt, or None if it is no prompt (validation will say why)."""
    if "invalid" in row:
        return None
    try:
        return parse_messages(row.get("prompt"), "user", "prompt")
    except ValueError:
        return None


def _hashed(prompt: Messages, config: IngestConfig, derived: frozenset[str]) -> str:
    use = split_of(prompt, fit=config.fit_share, rl=config.rl_share)
    if _KIND_OF_USE.get(use) in HELD_OUT and _KIND_OF_USE[use] not in derived:
        use = "fit"
    if use == "fit":
        return split_of(prompt, fit=1.0, rl=0.0, judge=config.judge_share)
    return use


def _claims(
    sources: Sequence[Source], config: IngestConfig, derived: frozenset[str]
) -> dict[int, tuple[int, int, str]]:
    """Who had each explicitly named prompt first: earlier sources, and within one evaluation before RL before
    fitting.

    Memory grows with the explicitly named prompts alone.
    """
    claims: dict[int, tuple[int, int, str]] = {}
    last = 0
    for position, source in enumerate(sources):
        for priority, kind in enumerate(reversed(HELD_OUT)):
            for row in source.rows(kind):
                prompt = prompt_of(row)
                if prompt is not None:
                    key = key_of(normalised_prompt(prompt))
                    claims.setdefault(key, (position, priority, _USE_OF_KIND[kind]))
                    last = position
    for position, source in enumerate(sources[:last]):
        for kind in FITTING:
            for row in source.rows(kind):
                prompt = prompt_of(row)
                if prompt is None:
                    continue
                key = key_of(normalised_prompt(prompt))
                if key in claims and claims[key][:2] > (position, len(HELD_OUT)):
                    claims[key] = (position, len(HELD_OUT), _hashed(prompt, config, derived))
    return claims
