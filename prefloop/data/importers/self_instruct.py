"""Seed tasks with instances, `{"instruction", "instances": [{"input", "output"}]}` (Self-Instruct)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.importers import alpaca
from prefloop.data.records import Row
from prefloop.data.transcripts import required, with_meta

KIND: Final = "demonstrations"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one demonstration an instance."""
    instances = required(record, "instances")
    if not isinstance(instances, list) or not instances:
        raise ValueError("instances must be a list of inputs and outputs")
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict):
            raise ValueError(f"instance {number} must be an object with input and output")
        for kind, row in alpaca.convert(
            {"instruction": required(record, "instruction"), **instance}, options
        ):
            yield (
                kind,
                with_meta(row, {k: v for k, v in record.items() if k != "id"}, "instruction", "instances"),
            )
