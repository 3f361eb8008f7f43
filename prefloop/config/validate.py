"""What data must be like, and what happens to rows that are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from prefloop.config.parse import at_least, nearest

Severity = Literal["error", "quarantine", "warn", "off"]


@dataclass(frozen=True)
class Expectation:
    """One expectation as it is applied.

    Attributes:
        severity: "error" stops the run and names the rows, "quarantine" moves them away with the reason,
            "warn" reports them, "off" does not look.
        threshold: the figure it is held to; its meaning is the expectation's own (see `DEFAULTS`), 0 where it
            has none.
    """

    severity: Severity
    threshold: float = 0.0


@dataclass(frozen=True)
class ExpectationOverride:
    """What params.yaml says about one expectation; keys left out keep the default.

    Attributes:
        severity: see `Expectation`. YAML reads a bare `off` as false, which means the same here.
        threshold: see `Expectation`.
    """

    severity: Literal["error", "quarantine", "warn", "off", False] | None = None
    threshold: float | None = None


DEFAULTS: Final[Mapping[str, Expectation]] = MappingProxyType(
    {
        # --- one row ---
        # the importer could read the row
        "readable": Expectation("quarantine"),
        # the row has the keys and types of its kind
        "schema": Expectation("quarantine"),
        # no text is empty or white space alone
        "prompt_not_empty": Expectation("quarantine"),
        "completion_not_empty": Expectation("quarantine"),
        # completions of different rank differ
        "completions_differ": Expectation("quarantine"),
        # compared completions are one assistant turn each, after one and the same prompt
        "same_prompt": Expectation("quarantine"),
        # an optional system turn, then user and assistant by turns, the user last before the completion
        "roles_alternate": Expectation("quarantine"),
        "ends_with_assistant": Expectation("quarantine"),
        # prompt plus longest completion, in tokens, is at most `threshold`
        "length": Expectation("quarantine", 2048),
        # no row says again what an earlier one said (same rater, where raters are named)
        "no_duplicate": Expectation("quarantine"),
        # the same for pre-training text, in which repetition may be meant
        "no_duplicate_text": Expectation("warn"),
        # Jaccard similarity to an earlier row, of prompts and of completions (sets of word triples), is below
        # `threshold`
        "no_near_duplicate": Expectation("warn", 0.9),
        # nobody prefers A to B here and B to A there, for one prompt
        "consistent_preference": Expectation("quarantine"),
        # no replacement or control characters, no UTF-8 read as Latin-1
        "encoding": Expectation("quarantine"),
        # no private keys, access tokens, card numbers
        "no_secrets": Expectation("quarantine"),
        # no e-mail addresses, phone numbers
        "no_personal_data": Expectation("warn"),
        # --- a whole kind ---
        # at least `threshold` usable rows, for the kinds that every pipeline needs
        "usable_rows": Expectation("error", 1),
        # at most this share of rows is quarantined: more looks like a wrong format
        "quarantined_share": Expectation("error", 0.5),
        # how far from one half the share of pairs lies whose longer completion is preferred
        "length_balance": Expectation("warn", 0.15),
        # Krippendorff's alpha where several raters judged one pair is at least `threshold`
        "rater_agreement": Expectation("warn", 0.2),
        # --- between kinds ---
        # fitting, RL and evaluation share no prompt
        "no_leak": Expectation("error"),
        # and no two prompts of a similarity of `threshold` or more
        "no_near_leak": Expectation("warn", 0.9),
    }
)
"""Every expectation with the severity and threshold it has when params.yaml says nothing."""

TABLE_EXPECTATIONS: Final = frozenset(
    ("usable_rows", "quarantined_share", "length_balance", "rater_agreement", "no_leak", "no_near_leak")
)
"""Expectations about a whole kind or several: there is no single row to quarantine."""

_SHARES: Final = frozenset(
    ("no_near_duplicate", "quarantined_share", "length_balance", "rater_agreement", "no_near_leak")
)


@dataclass(frozen=True)
class ValidateConfig:
    """Section `validate`.

    Attributes:
        expectations: overrides by name; `DEFAULTS` lists the names and what each expects.
        tokenizer: folder or hub id of the tokenizer that counts lengths; empty counts words and punctuation
            marks.
        permutations: hash functions of a MinHash signature (count); more find near-duplicates more surely.
        examples: rows named in messages and on the page for each expectation (count).
    """

    expectations: dict[str, ExpectationOverride] = field(default_factory=dict)
    tokenizer: str = ""
    permutations: int = 128
    examples: int = 10

    def __post_init__(self) -> None:
        at_least("permutations", self.permutations, 16)
        at_least("examples", self.examples, 1)
        for name, override in self.expectations.items():
            if name not in DEFAULTS:
                raise ValueError(f"unknown expectation {name}: {nearest(name, DEFAULTS)}")
            if override.severity == "quarantine" and name in TABLE_EXPECTATIONS:
                raise ValueError(f"expectations.{name} is about no single row: set error, warn or off")
            if override.threshold is not None:
                at_least(f"expectations.{name}.threshold", override.threshold, 0)
                if name in _SHARES and override.threshold > 1:
                    raise ValueError(
                        f"expectations.{name}.threshold is a share, at most 1: {override.threshold}"
                    )

    def expectation(self, name: str) -> Expectation:
        """The expectation `name`, its overrides applied. Raises KeyError where there is no such name."""
        default = DEFAULTS[name]
        override = self.expectations.get(name, ExpectationOverride())
        severity: Severity = default.severity
        if override.severity is False:
            severity = "off"
        elif override.severity is not None:
            severity = override.severity
        return Expectation(severity, default.threshold if override.threshold is None else override.threshold)
