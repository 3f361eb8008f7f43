"""A few faults of the soak, each in a run of its own, without the servers of `python -m tests.soak`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak.faults import FAULTS, available
from tests.soak.pipelines import LIGHT
from tests.soak.soak import Soak, left_out
from tests.soak.world import World, world

pytestmark = pytest.mark.slow
STRUCK = ("power cut", "disk full", "two coordinators")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fresh_store: Path) -> Iterator[tuple[World, Soak]]:
    """A workspace with the reference made."""
    with world(tmp_path_factory.mktemp("soak"), LIGHT, None) as made:
        (made.state / "mlflow").mkdir(parents=True)
        shutil.copy(fresh_store, made.state / "mlflow/mlflow.db")
        made.set({"tracking.experiment": "soak"})
        soak = Soak(made, 0, print)
        soak.prepare(changes=False)
        yield made, soak


@pytest.mark.parametrize("name", STRUCK)
def test_after_a_fault_all_is_as_if_nothing_had_happened(place: tuple[World, Soak], name: str) -> None:
    made, soak = place
    fault = next(fault for fault in FAULTS if fault.name == name)
    if not fault.needs <= available(made):
        pytest.skip(next(line for line in left_out(available(made)) if line.startswith(name)))
    result = soak.strike(STRUCK.index(name) + 1, fault)
    assert result.problems == [], result
    assert result.how == ("itself" if name == "two coordinators" else "one command")
