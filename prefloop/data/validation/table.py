"""Row features in a Parquet file, written and read by pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from prefloop.data.validation.features import COLUMNS

PIECE: Final = 100_000
"""Rows held in memory at once."""

_SCHEMA: Final = pa.schema([(column, pa.int32()) for column in COLUMNS.values()] + [("content", pa.uint64())])


class FeatureWriter:
    """Writes features row by row; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, _SCHEMA)
        self._rows: list[Mapping[str, int | None]] = []

    def add(self, columns: Mapping[str, int], content: int | None) -> None:
        """Appends a row; features left out are null."""
        self._rows.append({**columns, "content": content})
        if len(self._rows) >= PIECE // 10:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA))
            self._rows.clear()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()


def read_column(path: Path, name: str) -> npt.NDArray[Any]:
    """One column as an array; null counts become -1, null keys 0."""
    column = pq.read_table(path, columns=[name])[name]
    return np.asarray(column.fill_null(0 if name == "content" else -1).to_numpy())


def read_pieces(path: Path, extra: Mapping[str, npt.NDArray[np.int64]]) -> Iterator[pd.DataFrame]:
    """Yields the table by pieces, with positions as `row` and the columns of `extra`, -1 made null."""
    start = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=PIECE, columns=list(COLUMNS.values())):
            frame = batch.to_pandas()
            stop = start + len(frame)
            frame.insert(0, "row", np.arange(start, stop))
            for name, values in extra.items():
                frame[name] = pd.Series(values[start:stop]).where(values[start:stop] >= 0)
            yield frame
            start = stop
