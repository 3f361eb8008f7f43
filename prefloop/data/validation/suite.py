"""The judgement itself: Great Expectations over the table of row features, one expectation a check."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from prefloop.config.validate import Expectation
from prefloop.data.validation.features import COLUMNS
from prefloop.errors import DataError

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

LINKS: Final = {
    "no_duplicate": "duplicate_of",
    "no_duplicate_text": "duplicate_of",
    "no_near_duplicate": "near_duplicate_of",
    "consistent_preference": "contradicts",
}
"""Expectations whose column holds the position of another row, and is null where all is well."""

_FIGURES: Final = ("usable_rows", "quarantined_share", "length_balance", "rater_agreement")
_AT_LEAST: Final = ("usable_rows", "rater_agreement")


def judge_rows(
    pieces: Iterable[pd.DataFrame], expectations: Mapping[str, Expectation]
) -> dict[str, npt.NDArray[np.int64]]:
    """Positions of the rows that break each expectation about single rows.

    Args:
        pieces: tables with a column `row` and the columns of `COLUMNS` and `LINKS`.
        expectations: those to apply, by name.
    """
    broken: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in expectations}
    if not expectations:
        return {}
    validator = _Validator([_row_expectation(name, e) for name, e in expectations.items()])
    for piece in pieces:
        for name, result in validator.results(piece).items():
            broken[name].append(_rows(result, name))
    return {name: np.concatenate(parts or [np.empty(0, np.int64)]) for name, parts in broken.items()}


def judge_figures(
    figures: Mapping[str, float | None], expectations: Mapping[str, Expectation]
) -> dict[str, bool]:
    """Whether each expectation about a whole kind is met; a figure that is None (not taken) meets it."""
    names = [name for name in _FIGURES if name in expectations]
    if not names:
        return {}
    table = pd.DataFrame({name: pd.Series([figures.get(name)], dtype="float64") for name in names})
    validator = _Validator([_figure_expectation(name, expectations[name].threshold) for name in names])
    return {name: bool(result["success"]) for name, result in validator.results(table).items()}


class _Validator:
    """Great Expectations with its own suite, on tables in memory: no files, telemetry or progress bars."""

    def __init__(self, expectations: Sequence[Any]) -> None:
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        settings = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        )
        context = gx.get_context(mode="ephemeral", project_config=settings)
        source = context.data_sources.add_pandas("features")
        self._batches = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
        self._suite = gx.ExpectationSuite("rows", expectations=list(expectations))

    def results(self, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
        """The result of each expectation, by name."""
        batch = self._batches.get_batch({"dataframe": table})
        form: dict[str, Any] = {"result_format": "COMPLETE"}
        if "row" in table:
            form["unexpected_index_column_names"] = ["row"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = batch.validate(self._suite, result_format=form)
        results: list[dict[str, Any]] = [dict(result.to_json_dict()) for result in outcome.results]
        return {result["expectation_config"]["meta"]["name"]: result for result in results}


def _row_expectation(name: str, expectation: Expectation) -> Any:
    from great_expectations.expectations import core

    if name in LINKS:
        return core.ExpectColumnValuesToBeNull(  # type: ignore[attr-defined]
            column=LINKS[name], meta={"name": name}
        )
    limit = expectation.threshold if name == "length" else 0
    return core.ExpectColumnValuesToBeBetween(  # type: ignore[attr-defined]
        column=COLUMNS[name], max_value=limit, meta={"name": name}
    )


def _figure_expectation(name: str, threshold: float) -> Any:
    from great_expectations.expectations import core

    least, most = (threshold, None) if name in _AT_LEAST else (None, threshold)
    return core.ExpectColumnValuesToBeBetween(  # type: ignore[attr-defined]
        column=name, min_value=least, max_value=most, meta={"name": name}
    )


def _rows(result: Mapping[str, Any], name: str) -> npt.NDArray[np.int64]:
    if result.get("exception_info", {}).get("raised_exception"):
        raise DataError(
            f"expectation {name} could not be judged: {result['exception_info']['exception_message']}"
        )
    indices = result["result"].get("unexpected_index_list") or []
    return np.array(sorted(int(index["row"]) for index in indices), np.int64)
