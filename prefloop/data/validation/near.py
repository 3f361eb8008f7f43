"""Near-duplicates: MinHash signatures (datasketch), locality-sensitive bands on disk, then an exact check.

Two texts are compared as sets of word triples. Signatures are cut into bands; rows that share a band are
candidates. Each row is held against the first and the previous one of its band only, so that the work grows
with the rows and not with their pairs, however alike they are.

Templates: two texts of equally many words that differ in one or two of them are instances of a template
("Which colour is the lamp?", "Which colour is the oven?"), not duplicates, unless these are two spellings
of one word.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from datasketch import MinHash

Words = list[str]
Int = npt.NDArray[np.int64]

_WORD: Final = re.compile(r"\w+")
_SHINGLE: Final = 3
_BATCH: Final = 1024
_TEMPLATE_WORDS: Final = 2
_SPELLING: Final = 0.8
_MOST_CANDIDATES: Final = 8
_RECALL: Final = 0.99


def words_of(text: str) -> Words:
    """The words of a text in lower case."""
    return _WORD.findall(text.lower())


def shingles(words: Words) -> set[str]:
    """Overlapping triples of words; all the words as one where there are fewer."""
    if len(words) <= _SHINGLE:
        return {" ".join(words)} if words else set()
    return {" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}


def jaccard(left: set[str], right: set[str]) -> float:
    """Size of the intersection over the size of the union; two empty sets are equal."""
    if not left and not right:
        return 1.0
    return len(left & right) / len(left | right)


def same_template(left: Words, right: Words) -> bool:
    """True if the texts are two instances of a template (see the module's docstring)."""
    if len(left) != len(right):
        return False
    differing = [(a, b) for a, b in zip(left, right, strict=True) if a != b]
    if not 1 <= len(differing) <= _TEMPLATE_WORDS:
        return False
    return not all(_spellings(a, b) for a, b in differing)


def _spellings(left: str, right: str) -> bool:
    """True if two words look like two spellings, or two forms, of one."""
    if left[0] != right[0] or left.isdigit() or right.isdigit():
        return False
    return SequenceMatcher(None, left, right).ratio() >= _SPELLING


def near_duplicates(left: Sequence[Words], right: Sequence[Words], threshold: float) -> bool:
    """True if two rows are near-duplicates: each of their parts (prompt, completions) is.

    Args:
        left, right: the words of each part.
        threshold: least Jaccard similarity of every part.
    """
    if any(jaccard(shingles(a), shingles(b)) < threshold for a, b in zip(left, right, strict=True)):
        return False
    return not same_template([w for part in left for w in part], [w for part in right for w in part])


def band_rows(permutations: int, threshold: float) -> int:
    """Widest band, in rows of the signature, that finds a pair at the threshold with probability 0.99.

    A pair of similarity s shares one of b bands of r rows with probability 1 - (1 - s^r)^b.
    """
    widths = [r for r in range(1, permutations + 1) if permutations % r == 0]
    good = [r for r in widths if 1 - (1 - threshold**r) ** (permutations // r) >= _RECALL]
    return max(good, default=1)


class Bands:
    """Band keys of many rows, in a file: eight bytes a band and row.

    Args:
        permutations: length of a signature.
        threshold: similarity that is to be found.
        folder: where the temporary file lies.
    """

    def __init__(self, permutations: int, threshold: float, folder: Path) -> None:
        self.width = band_rows(permutations, threshold)
        self.count = permutations // self.width
        self._permutations = permutations
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`
        self._waiting: list[list[bytes]] = []
        self._rows = 0

    def add(self, parts: Iterable[Words]) -> None:
        """Appends a row, given the words of its parts; a row without words is like no other."""
        found = [f"{n}{s}".encode() for n, part in enumerate(parts) for s in shingles(part)]
        self._waiting.append(found or [f"empty {self._rows + len(self._waiting)}".encode()])
        if len(self._waiting) == _BATCH:
            self._flush()

    def candidates(
        self, allowed: Callable[[Int, Int], npt.NDArray[np.bool_]] | None = None
    ) -> list[tuple[int, int]]:
        """Pairs (later, earlier) that share a band; at most eight a later row, those that share most bands.

        Args:
            allowed: which of some pairs (arrays of later and earlier positions) are of interest; None means
                all.
        """
        self._flush()
        if self._rows < 2:
            return []
        self._file.seek(0)
        keys = np.memmap(self._file, np.uint64, "r", shape=(self._rows, self.count))
        pairs = np.concatenate(
            [_linked(np.ascontiguousarray(keys[:, b]), allowed) for b in range(self.count)]
        )
        unique, shared = np.unique(pairs, axis=0, return_counts=True)
        order = np.lexsort((unique[:, 1], -shared, unique[:, 0]))
        later = unique[order, 0]
        starts = np.flatnonzero(np.r_[True, np.diff(later) != 0]) if len(later) else np.empty(0, np.int64)
        place = np.arange(len(later)) - np.repeat(starts, np.diff(np.r_[starts, len(later)]))
        return [(int(a), int(b)) for a, b in unique[order][place < _MOST_CANDIDATES]]

    def close(self) -> None:
        """Removes the file."""
        self._file.close()

    def _flush(self) -> None:
        if not self._waiting:
            return
        hashes = MinHash.generator(self._waiting, num_perm=self._permutations, hashfunc=zlib.crc32)
        signatures = np.stack([minhash.hashvalues.astype(np.uint64) for minhash in hashes])
        bands = signatures.reshape(len(signatures), self.count, self.width)
        keys = np.zeros(bands.shape[:2], np.uint64)
        with np.errstate(over="ignore"):
            for column in range(self.width):
                keys = (keys ^ bands[:, :, column]) * np.uint64(0x9E3779B97F4A7C15)
                keys ^= keys >> np.uint64(29)
        self._file.seek(0, 2)
        self._file.write(keys.tobytes())
        self._rows += len(signatures)
        self._waiting.clear()


def _linked(keys: npt.NDArray[np.uint64], allowed: Callable[[Int, Int], npt.NDArray[np.bool_]] | None) -> Int:
    """Pairs (later, earlier) of one band: each row with the first and with the previous row of equal key."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    fresh = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]]
    first = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))]
    previous = np.r_[0, order[:-1]]
    later = np.concatenate([order[~fresh], order[~fresh]])
    earlier = np.concatenate([first[~fresh], previous[~fresh]])
    if allowed is not None:
        wanted = allowed(later, earlier)
        later, earlier = later[wanted], earlier[wanted]
    return np.unique(np.stack([later, earlier], axis=1), axis=0)
