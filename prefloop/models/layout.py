"""Where attention finds flat tokens: sequences end to end, spread into padded rows and collected again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from prefloop.data.batching import chunks, length_groups

GROUP_COST = 128
"""Padded tokens that a further group of rows has to save attention, for its small operations."""
WIDE = 128
STEADY_ROWS, WIDE_ROWS = 4, 2
"""Rows of a group where shapes of groups are to be few; and where its rows are longer than WIDE, as padding
costs more there (`python -m benchmarks.techniques groups` times a step either way)."""
FEW = 4
"""One slot in so many cells: up to there queries stand apart. Causal attention of whole rows leaves half of
its products out, so that more would not save much."""


@dataclass(frozen=True)
class Asked:
    """Queries of some tokens, A to a row: as many as the row of its group that has most of them.

    Attributes:
        tokens: (n,) int64, the flat tokens that ask, each once.
        slots: (n,) int64, where each stands among the slots of all groups, which follow each other.
        groups: for each group (B * A,) int64, which of `tokens` stands in each slot, any where none does; and
            (B, 1, A, W) bool, True where a slot (dim 2) looks at a cell (dim 3).
    """

    tokens: Tensor
    slots: Tensor
    groups: Sequence[tuple[Tensor, Tensor]]

    def spread(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """(N, H, D) -> (B, H, A, D) and the mask for each group."""
        asking = flat.index_select(0, self.tokens)
        found = []
        for places, mask in self.groups:
            rows, _, slots, _ = mask.shape
            states = asking.index_select(0, places).view(rows, slots, *flat.shape[1:])
            found.append((states.transpose(1, 2), mask))
        return found

    def collect(self, groups: Sequence[Tensor], count: int) -> Tensor:
        """(B, H, A, D) of each group -> (N, H, D) for `count` tokens, 0 for those that do not ask."""
        answers = torch.cat([group.transpose(1, 2).flatten(0, 1) for group in groups])
        asking = answers.index_select(0, self.slots)
        return asking.new_zeros((count, *asking.shape[1:])).index_copy(0, self.tokens, asking)


@dataclass(frozen=True)
class HeadCells:
    """A layout's cells for each of G heads, so that a group's cells of a row's head follow each other.

    Attributes:
        heads: G.
        shapes: (B * G, W) of each group.
        source: (C * G,) int64, which of the (N, G) flat tokens' heads stands in each cell.
        cells: (n * G,) int64, the cell in which each head of the first n flat tokens is a query.
        repeated: True where a token may stand in several rows.
    """

    heads: int
    shapes: Sequence[tuple[int, int]]
    source: Tensor
    cells: Tensor
    repeated: bool


@dataclass(frozen=True)
class Layout:
    """How flat tokens are spread into the rows that attention sees, padded on the right, and collected again.

    Attributes:
        shapes: (B, W) of each group of rows of like length; their cells follow each other, C in all.
        tokens: (C,) int64, the flat token in each cell; on padding any of the row's, since nothing real looks
            at what stands there. None where cells and tokens are the same.
        cells: (N,) int64, the cell in which each flat token is a query. None likewise.
        repeated: True where a token may stand in several rows.
        further: flat tokens at the end that stand in no row.
        asked: the only queries; None where every token asks.
    """

    shapes: Sequence[tuple[int, int]]
    tokens: Tensor | None
    cells: Tensor | None
    repeated: bool = False
    further: int = 0
    asked: Asked | None = None
    _of_heads: dict[int, HeadCells] = field(default_factory=dict, init=False, repr=False, compare=False)

    def of_heads(self, heads: int) -> HeadCells:
        """For so many heads, made once."""
        if heads not in self._of_heads:
            self._of_heads[heads] = _head_cells(self, heads)
        return self._of_heads[heads]

    def lengthened(self, further: int) -> Layout:
        """With so many flat tokens more at the end, which nothing attends to."""
        if not further:
            return self
        total = sum(count * width for count, width in self.shapes)
        cells = torch.arange(total) if self.cells is None else self.cells
        tokens = torch.arange(total) if self.tokens is None else self.tokens
        return Layout(self.shapes, tokens, pad(cells, (0, further)), self.repeated, further)

    def where_asked(self, wanted: Tensor) -> Layout:
        """With queries of the `wanted` tokens alone, (n,) int64, where they are so few that it pays."""
        tokens = wanted.unique()
        cells = sum(count * width for count, width in self.shapes)
        if not 0 < len(tokens) * FEW <= cells:
            return self
        asked = _asked(self, tokens)
        slots = sum(len(places) for places, _ in asked.groups)
        return replace(self, asked=asked) if slots * FEW <= cells else self

    @property
    def rows(self) -> int:
        """How many sequences there are."""
        return sum(count for count, _ in self.shapes)

    def spread(self, flat: Tensor) -> list[Tensor]:
        """(N, H, D) -> (B, H, W, D) for each group."""
        cells = flat if self.tokens is None else flat.index_select(0, self.tokens)
        sizes = [count * width for count, width in self.shapes]
        parts = cells.split(sizes) if len(sizes) > 1 else (cells,)
        return [
            part.view(*shape, *part.shape[1:]).transpose(1, 2)
            for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def collect(self, groups: Sequence[Tensor]) -> Tensor:
        """(B, H, W, D) of each group -> (N, H, D)."""
        parts = [group.transpose(1, 2).flatten(0, 1) for group in groups]
        cells = torch.cat(parts) if len(parts) > 1 else parts[0]
        return cells if self.cells is None else cells.index_select(0, self.cells)


def layout_of(
    starts: Sequence[int],
    lengths: Sequence[int],
    prefix_starts: Sequence[int] | None = None,
    prefix_lengths: Sequence[int] | None = None,
    *,
    steady: bool = False,
) -> Layout:
    """The layout of sequences that are each a stretch of the flat tokens, after a prefix that some may share.

    Args:
        starts, lengths: of each sequence's own stretch. All stretches and prefixes make up the flat tokens.
        prefix_starts, prefix_lengths: of what stands before; sequences with an equal prefix_start share it.
            None: nothing.
        steady: groups have few shapes: of so many rows, of widths that are a few for each doubling.
    """
    start, length = torch.tensor(starts), torch.tensor(lengths)
    before = torch.zeros_like(length) if prefix_lengths is None else torch.tensor(prefix_lengths)
    shared = torch.zeros_like(length) if prefix_starts is None else torch.tensor(prefix_starts)
    whole: list[int] = (before + length).tolist()
    shapes, tokens, places, cells = [], [], [], []
    askers, first = dict[int, int](), 0
    groups: Iterable[Sequence[int]]
    groups = _steady_groups(whole) if steady else length_groups(whole, "cpu", overhead=GROUP_COST)
    for group in groups:
        row = torch.tensor(group)
        width = max(whole[i] for i in group)
        width = steady_width(width) if steady else width
        place = torch.arange(width)
        limit = (before + length)[row].unsqueeze(1)
        prefix = before[row].unsqueeze(1)
        within = torch.minimum(place, limit - 1)
        token = within + torch.where(
            within < prefix, shared[row].unsqueeze(1), start[row].unsqueeze(1) - prefix
        )
        shapes.append((len(group), width))
        tokens.append(token.flatten())
        asks = place < limit
        if prefix_starts is not None:  # a prefix's queries are those of the first sequence that has it
            asker = [askers.setdefault(prefix_starts[i], i) == i for i in group]
            asks &= (place >= prefix) | torch.tensor(asker).unsqueeze(1)
        asking = asks.flatten().nonzero().squeeze(1)
        places.append(tokens[-1][asking])
        cells.append(asking + first)
        first += len(group) * width
    token, place, cell = torch.cat(tokens), torch.cat(places), torch.cat(cells)
    if len(token) == len(place) and bool((token == torch.arange(len(token))).all()):
        return Layout(shapes, None, None)
    found = torch.empty_like(place).index_copy(0, place, cell)
    return Layout(shapes, token, found, repeated=sum(whole) > len(place))


def _steady_groups(lengths: Sequence[int]) -> list[Sequence[int]]:
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    narrow = sum(length <= WIDE for length in lengths)
    return [*chunks(order[:narrow], STEADY_ROWS), *chunks(order[narrow:], WIDE_ROWS)]


def steady_width(width: int) -> int:
    """The least of the widths 8, 16 ... 64, 72 ... 128, 144 ... 256, 288 ... that is no less: eight for each
    doubling, and from 64 on an eighth of padding at most."""
    step = max((1 << (width - 1).bit_length()) // 16, 8)
    return -(-width // step) * step


def _head_cells(layout: Layout, heads: int) -> HeadCells:
    total = sum(count * width for count, width in layout.shapes)
    tokens = torch.arange(total) if layout.tokens is None else layout.tokens
    cells = torch.arange(total) if layout.cells is None else layout.cells
    each, first = torch.arange(heads), 0
    source, place = list[Tensor](), torch.empty((total, heads), dtype=torch.long)
    for count, width in layout.shapes:
        end = first + count * width
        source.append((tokens[first:end].view(count, 1, width) * heads + each.view(1, heads, 1)).flatten())
        own = torch.arange(first * heads, end * heads).view(count, heads, width)
        place[first:end] = own.transpose(1, 2).reshape(-1, heads)
        first = end
    real = cells[: len(cells) - layout.further]
    shapes = [(count * heads, width) for count, width in layout.shapes]
    return HeadCells(heads, shapes, torch.cat(source), place[real].flatten(), layout.repeated)


def _asked(layout: Layout, tokens: Tensor) -> Asked:
    """Queries of (n,) int64 tokens, each there once."""
    cells = tokens if layout.cells is None else layout.cells[tokens]
    slots, groups = torch.empty_like(tokens), []
    first = before = 0
    for count, width in layout.shapes:
        here = ((cells >= first) & (cells < first + count * width)).nonzero().squeeze(1)
        row, place = (cells[here] - first) // width, (cells[here] - first) % width
        order = row.argsort(stable=True)
        of_row = row.bincount(minlength=count)
        most = max(int(of_row.max()), 1)
        rank = torch.empty_like(row)
        rank[order] = torch.arange(len(row)) - (of_row.cumsum(0) - of_row)[row[order]]
        slot = row * most + rank
        asker, limit = tokens.new_zeros((2, count * most))
        asker[slot], limit[slot] = here, place
        mask = torch.arange(width) <= limit.view(count, 1, most, 1)
        slots[here] = slot + before
        groups.append((asker, mask))
        first, before = first + count * width, before + count * most
    return Asked(tokens, slots, groups)
