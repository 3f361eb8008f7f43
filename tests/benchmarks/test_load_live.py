"""The load benchmark's store with a real server, at a small size."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from sqlalchemy import event
from sqlalchemy.engine import Engine

from benchmarks.dashboard.ask import Page, questions
from benchmarks.dashboard.fill import STAGES, pipeline_run
from benchmarks.queueing.servers import mlflow
from tasks.deliver import deliver_once
from tasks.support.mlflow_store import local_folder, reached, read_config
from tasks.support.records import find
from tests.support.conftest import tracked as tracked

pytestmark = [pytest.mark.slow, pytest.mark.servers]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tracked: Path) -> Path:
    """A workspace with the real parameters and a database of its own."""
    text = (ROOT / "params.yaml").read_text()
    (tracked / "params.yaml").write_text(text.replace("experiment: prefloop", "experiment: test"))
    return tracked


def fill(pipelines: int) -> list[str]:
    made = [pipeline_run(number) for number in range(pipelines)]
    deliver_once()
    return made


def test_pages_and_commands_find_their_runs_through_a_server(store, monkeypatch):
    first, last = fill(2)
    asked: list[str] = []
    send = requests.Session.request

    def counted(session: requests.Session, method: str, url: str, *words: object, **more: object) -> object:
        asked.append(url)
        return send(session, method, url, *words, **more)  # type: ignore[arg-type]

    with mlflow(store, f"sqlite:///{local_folder() / 'mlflow.db'}") as (server, _):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        for name, ask in questions(server.address, first, last).items():
            assert ask(), name
        with reached(read_config()) as opened:
            rows = Page(server.address, opened.experiment).runs(
                "metrics.`eval/ppo/gold.mean` DESC", "tags.mlflow.runName = 'pipeline'"
            )
        monkeypatch.setattr(requests.Session, "request", counted)
        record = find(last, [])
    # The experiment, the run, and its record among the artifacts, whatever else the store holds.
    assert len(asked) == 5, asked
    assert record["figures"]["ppo"]["gold.mean"] == pytest.approx(1 + 1 / 17)
    gold = [
        {one["key"]: one["value"] for one in row["data"]["metrics"]}["eval/ppo/gold.mean"] for row in rows
    ]
    assert gold == pytest.approx([1 + number / 17 for number in (1, 0)])


def test_what_a_run_costs_the_store_does_not_grow_with_the_runs_it_holds(store):
    def statements() -> tuple[int, int]:
        """SQL statements of delivering a pipeline run with its stages, and of finding it."""
        counted: list[str] = []

        def note(connection, cursor, statement, *rest):
            counted.append(statement)

        run = pipeline_run(len(known))
        known.append(run)
        event.listen(Engine, "before_cursor_execute", note)
        try:
            deliver_once()
            delivered = len(counted)
            assert find(run, [])["figures"]
            return delivered, len(counted) - delivered
        finally:
            event.remove(Engine, "before_cursor_execute", note)

    known = fill(1)
    statements()  # what a first delivery does once
    few = statements()
    known += fill(2)
    assert statements() == few
    with reached(read_config()) as opened:
        assert len(opened.client.search_runs([opened.experiment])) == len(known) * (len(STAGES) + 1)
