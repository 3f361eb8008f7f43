"""Proof that prompts for fitting, reinforcement learning and evaluation do not overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from prefloop.config.validate import ValidateConfig
from prefloop.data.records import FITTING, key_of, normalised_prompt, parse_messages, plain
from prefloop.data.validation.near import Bands, near_duplicates, words_of
from prefloop.data.validation.rowfile import RowFile, where
from prefloop.errors import DataError

USES: Final[Mapping[str, tuple[str, ...]]] = {
    "fitting": FITTING,
    "rl": ("prompts",),
    "evaluation": ("evaluation",),
}
"""The kinds whose prompts each use sees. No two uses may share a prompt."""

APART: Final[Mapping[str, tuple[str, ...]]] = {
    "preferences": ("preferences", "unpaired"),
    "judge": ("judge",),
}
"""Kinds of one use that may not share a prompt either: the judge would not be independent."""


@dataclass(frozen=True)
class Overlap:
    """Prompts that two sides share.

    Attributes:
        left, right: uses, or kinds.
        prompts: how many.
        examples: {"left", "right"} in words that say where the rows are.
    """

    left: str
    right: str
    prompts: int
    examples: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class LeakReport:
    """What was found.

    Attributes:
        prompts: distinct prompts by use.
        exact: shared prompts, one entry a pair of sides.
        near: prompts nearly the same, likewise; None if that was not looked for.
    """

    prompts: dict[str, int]
    exact: list[Overlap]
    near: list[Overlap] | None

    @property
    def shared(self) -> int:
        """Shared prompts, all sides together."""
        return sum(overlap.prompts for overlap in self.exact)


@dataclass(frozen=True, slots=True)
class _Side:
    """Distinct prompts of some kinds: sorted keys, and for each which file and row has it first."""

    keys: npt.NDArray[np.uint64]
    files: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def find_leaks(folder: Path, config: ValidateConfig, scratch: Path) -> LeakReport:
    """Compares the prompts of data/validated/.

    Args:
        folder: data/validated.
        config: severities and thresholds of `no_leak` and `no_near_leak`.
        scratch: folder for temporary files.

    Raises:
        DataError: prompts are shared and `no_leak` has severity error, or nearly shared and `no_near_leak`
            has.
    """
    kinds = [kind for kinds in USES.values() for kind in kinds]
    with ExitStack() as stack:
        files = {kind: stack.enter_context(RowFile(folder / f"{kind}.jsonl")) for kind in kinds}
        keys = {kind: np.fromiter(_keys(files[kind]), np.uint64) for kind in kinds}
        sides, apart = (
            {
                name: _side([keys[k] for k in members], [kinds.index(k) for k in members])
                for name, members in parts.items()
            }
            for parts in (USES, APART)
        )
        named = _Namer([files[kind] for kind in kinds], config.examples)
        exact = [
            _exact(left, right, sides[left], sides[right], named) for left, right in combinations(USES, 2)
        ]
        left, right = APART
        exact.append(_exact(left, right, apart[left], apart[right], named))
        near = None
        if config.expectation("no_near_leak").severity != "off":
            near = _near(sides, named, config, scratch)
    report = LeakReport({use: len(side.keys) for use, side in sides.items()}, exact, near)
    _stop_on_errors(report, config)
    return report


def _keys(file: RowFile) -> Iterator[int]:
    for row in file.rows():
        yield key_of(normalised_prompt(parse_messages(row["prompt"], "user", "prompt")))


def _side(keys: Sequence[npt.NDArray[np.uint64]], files: Sequence[int]) -> _Side:
    together = np.concatenate(keys)
    file = np.concatenate([np.full(len(k), f, np.int64) for k, f in zip(keys, files, strict=True)])
    row = np.concatenate([np.arange(len(k)) for k in keys])
    unique, first = np.unique(together, return_index=True)
    return _Side(unique, file[first], row[first])


class _Namer:
    """Finds the row behind a prompt, and words for where it is."""

    def __init__(self, files: Sequence[RowFile], examples: int) -> None:
        self._files, self.examples = files, examples

    def row(self, side: _Side, index: int) -> dict[str, Any]:
        return self._files[int(side.files[index])].row(int(side.rows[index]))

    def __call__(self, side: _Side, index: int) -> str:
        file = self._files[int(side.files[index])]
        return f"{file.path}, row {int(side.rows[index]) + 1} ({where(self.row(side, index))})"

    def words(self, side: _Side, index: int) -> list[str]:
        return words_of(plain(parse_messages(self.row(side, index)["prompt"], "user", "prompt")))


def _exact(left: str, right: str, a: _Side, b: _Side, named: _Namer) -> Overlap:
    shared, at, bt = np.intersect1d(a.keys, b.keys, assume_unique=True, return_indices=True)
    pairs = list(zip(at, bt, strict=True))[: named.examples]
    examples = [{"left": named(a, int(i)), "right": named(b, int(j))} for i, j in pairs]
    return Overlap(left, right, len(shared), examples)


def _near(sides: Mapping[str, _Side], named: _Namer, config: ValidateConfig, scratch: Path) -> list[Overlap]:
    """Candidates across uses, each against the first and the previous prompt of its band, checked exactly."""
    threshold = config.expectation("no_near_leak").threshold
    uses = list(sides)
    use_of = np.repeat(np.arange(len(uses)), [len(side.keys) for side in sides.values()])
    index_of = np.concatenate([np.arange(len(side.keys)) for side in sides.values()])
    scratch.mkdir(parents=True, exist_ok=True)
    bands = Bands(config.permutations, threshold, scratch)
    for use, index in zip(use_of, index_of, strict=True):
        bands.add([named.words(sides[uses[use]], int(index))])
    found: dict[tuple[str, str], list[dict[str, str]]] = {pair: [] for pair in combinations(uses, 2)}
    counts = dict.fromkeys(found, 0)
    for later, earlier in bands.candidates(lambda a, b: use_of[a] != use_of[b]):
        left, right = uses[use_of[earlier]], uses[use_of[later]]
        i, j = int(index_of[earlier]), int(index_of[later])
        if sides[left].keys[i] == sides[right].keys[j]:
            continue
        words = named.words(sides[left], i), named.words(sides[right], j)
        if near_duplicates([words[0]], [words[1]], threshold):
            counts[left, right] += 1
            if len(found[left, right]) < named.examples:
                found[left, right].append({"left": named(sides[left], i), "right": named(sides[right], j)})
    bands.close()
    return [Overlap(left, right, counts[left, right], found[left, right]) for left, right in found]


def _stop_on_errors(report: LeakReport, config: ValidateConfig) -> None:
    messages = []
    for name, overlaps, words in (
        ("no_leak", report.exact, "share"),
        ("no_near_leak", report.near or [], "nearly share"),
    ):
        if config.expectation(name).severity != "error":
            continue
        for overlap in overlaps:
            if overlap.prompts:
                named = "; ".join(f"{e['left']} and {e['right']}" for e in overlap.examples)
                messages.append(
                    f"{overlap.left} and {overlap.right} {words} {overlap.prompts} prompts: {named}"
                )
    if messages:
        raise DataError(
            "\n  ".join(messages),
            "take these prompts out of one side and import again; a prompt may have one use only",
        )
