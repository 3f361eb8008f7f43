"""The pairs that a ranking orders."""

from __future__ import annotations


def pair_indices(ranks: list[int]) -> tuple[list[tuple[int, int]], int]:
    """All (better, worse) index pairs of a ranking (0 is best), and how many pairs are ties."""
    pairs: list[tuple[int, int]] = []
    ties = 0
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            if ranks[i] == ranks[j]:
                ties += 1
            else:
                pairs.append((i, j) if ranks[i] < ranks[j] else (j, i))
    return pairs, ties
