"""Every pair or answer that somebody judged: contradictions, agreement between raters, the pull of length."""

from __future__ import annotations

from array import array
from itertools import combinations

import numpy as np
import numpy.typing as npt

from prefloop.data.records import Example, Row, key_of, normalise, plain
from prefloop.data.validation.features import CountTokens

Int = npt.NDArray[np.int64]


class PairLog:
    """Judged pairs, and answers judged alone, in columns of 25 bytes each.

    A pair's key is the same whichever of its two completions comes first; its value is -1 or +1 for the one
    preferred (in the order of the texts), 0 for a tie. An answer's value is +1 if it was found desirable,
    else -1.
    """

    def __init__(self) -> None:
        self._keys, self._raters, self._rows = array("Q"), array("Q"), array("q")
        self._values = array("b")
        self.longer, self.unequal, self.ties, self.labels = 0, 0, 0, 0

    def add(self, position: int, row: Row, example: Example, count_tokens: CountTokens) -> None:
        """Logs all pairs of a comparison; rows that nobody could or would judge have none."""
        if row.get("both_bad") or row.get("skipped"):
            return
        prompt = normalise(plain(example.prompt))
        texts = [normalise(plain(completion)) for completion in example.completions]
        lengths = [count_tokens(text) for text in texts]
        for i, j in combinations(range(len(texts)), 2):
            if texts[i] == texts[j]:
                continue
            preferred = int(np.sign(example.ranks[j] - example.ranks[i]))
            first, second = sorted((texts[i], texts[j]))
            self._log(
                position, row, key_of(prompt, first, second), preferred if texts[i] == first else -preferred
            )
            self.ties += preferred == 0
            if preferred and lengths[i] != lengths[j]:
                self.unequal += 1
                self.longer += (lengths[i] > lengths[j]) == (preferred > 0)

    def add_label(self, position: int, row: Row, example: Example) -> None:
        """Logs what was said of the one completion of an unpaired row."""
        if row.get("skipped"):
            return
        key = key_of(normalise(plain(example.prompt)), normalise(plain(example.completions[0])))
        self._log(position, row, key, 1 if row["label"] else -1)
        self.labels += 1

    def _log(self, position: int, row: Row, key: int, value: int) -> None:
        self._keys.append(key)
        self._values.append(value)
        self._raters.append(key_of(str(row["rater"])) if row.get("rater") is not None else 0)
        self._rows.append(position)

    def __len__(self) -> int:
        """Judged pairs alone."""
        return len(self._keys) - self.labels

    @property
    def longer_share(self) -> float | None:
        """Share of pairs of unequal length whose longer completion is preferred; None without such pairs."""
        return self.longer / self.unequal if self.unequal else None

    def contradictions(self, rows: int) -> Int:
        """For each of `rows` rows, one by the same rater that prefers the opposite; -1 for none."""
        opposite = np.full(rows, -1, np.int64)
        keys, values, raters, positions = self._columns()
        order = np.lexsort((positions, raters, keys))
        keys, values, raters, positions = keys[order], values[order], raters[order], positions[order]
        if not len(keys):
            return opposite
        starts = np.flatnonzero(np.r_[True, (np.diff(keys) != 0) | (np.diff(raters) != 0)])
        contradicted = np.minimum.reduceat(values, starts) * np.maximum.reduceat(values, starts) < 0
        stops = np.r_[starts[1:], len(keys)]
        for start, stop in zip(starts[contradicted], stops[contradicted], strict=True):
            group = slice(start, stop)
            for sign in (-1, 1):
                others = positions[group][values[group] == -sign]
                opposite[positions[group][values[group] == sign]] = others[0]
        return opposite

    def agreement(self) -> tuple[float | None, int]:
        """Krippendorff's alpha (nominal) over what several named raters judged, and how much that is."""
        keys, values, raters, _ = self._columns()
        named = raters != 0
        if not named.any():
            return None, 0
        units, unit = np.unique(keys[named], return_inverse=True)
        counts = np.zeros((len(units), 3), np.int64)
        np.add.at(counts, (unit, values[named] + 1), 1)
        counts = counts[counts.sum(axis=1) >= 2]
        return krippendorff_alpha(counts), len(counts)

    def _columns(self) -> tuple[npt.NDArray[np.uint64], Int, npt.NDArray[np.uint64], Int]:
        return (
            np.array(self._keys, np.uint64),
            np.array(self._values, np.int64),
            np.array(self._raters, np.uint64),
            np.array(self._rows, np.int64),
        )


def krippendorff_alpha(counts: Int) -> float | None:
    """Krippendorff's alpha for nominal values: 1 is agreement, 0 is what chance gives.

    Args:
        counts: how often each value was given to each unit, (units, values), each unit judged at least twice.

    Returns:
        1 - D_o / D_e (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", eq. 2 and section B);
        None if there is no unit, or one single value throughout.
    """
    if not len(counts):
        return None
    judged = counts.sum(axis=1)
    disagreeing = judged**2 - (counts**2).sum(axis=1)
    total = judged.sum()
    observed = (disagreeing / (judged - 1)).sum() / total
    values = counts.sum(axis=0)
    expected = (total**2 - (values**2).sum()) / (total * (total - 1))
    return None if expected == 0 else float(1 - observed / expected)
