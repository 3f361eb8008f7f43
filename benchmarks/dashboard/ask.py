"""What people ask of many runs, each several times.

    python -m benchmarks.dashboard.ask ADDRESS REPEATS FIRST LAST

In a workspace whose MLflow server is at ADDRESS; FIRST and LAST are pipeline runs. Prints JSON: what was
asked -> seconds of each time.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx

from tasks.support.mlflow_store import reached, read_config
from tasks.support.records import find

PAGE = 100
"""Runs that MLflow's page asks for at once."""
POINTS = 320
"""Points of a curve that its charts ask for."""


class Page:
    """The calls that MLflow's pages make.

    Args:
        address: of the server.
        experiment: its id.
    """

    def __init__(self, address: str, experiment: str) -> None:
        self._client = httpx.Client(base_url=f"{address}/ajax-api/2.0/mlflow/", timeout=120)
        self._experiment = experiment

    def post(self, path: str, **body: object) -> Any:
        return self._client.post(path, json=body).raise_for_status().json()

    def get(self, path: str) -> Any:
        return self._client.get(path).raise_for_status().json()

    def runs(self, order: str = "attributes.start_time DESC", where: str = "") -> list[dict[str, Any]]:
        """One page of the table of runs."""
        body = {"experiment_ids": [self._experiment], "order_by": [order], "filter": where}
        found = self.post("runs/search", **body, max_results=PAGE, run_view_type="ACTIVE_ONLY")
        return list(found.get("runs", []))

    def curves(self, runs: list[dict[str, Any]], metric: str) -> Any:
        """A chart of one metric over runs."""
        ids = "&".join(f"run_ids={run['info']['run_id']}" for run in runs)
        words = f"{ids}&metric_key={quote(metric, safe='')}&max_results={POINTS}"
        return self.get(f"metrics/get-history-bulk-interval?{words}")

    def models(self) -> Any:
        """The experiment's logged models."""
        return self.post("logged-models/search", experiment_ids=[self._experiment], max_results=50)

    def versions(self, name: str) -> Any:
        """A registered model's page."""
        words = quote(f"name='{name}'")
        return self.get(f"model-versions/search?filter={words}&max_results=25")


def questions(address: str, first: str, last: str) -> dict[str, Callable[[], Any]]:
    """What is asked, by its name; each gives something that is not empty."""
    with reached(read_config()) as store:
        page = Page(address, store.experiment)
    pipelines = page.runs(where="tags.mlflow.runName = 'pipeline'")
    parent = pipelines[0]["info"]["run_id"]
    trained = page.runs(where="tags.`prefloop.stage` = 'sft'")[:10]

    def compared() -> Any:
        return [find(name, []) for name in (first, last)]

    return {
        "a run made elsewhere, by its id, twice (`prefloop compare`)": compared,
        "page of runs, newest first": page.runs,
        "page of pipeline runs, by a policy's gold score": lambda: page.runs(
            "metrics.`eval/ppo/gold.mean` DESC", "tags.mlflow.runName = 'pipeline'"
        ),
        "page of one stage's runs, by its loss": lambda: page.runs(
            "metrics.`train/loss` ASC", "tags.`prefloop.stage` = 'sft'"
        ),
        "page of runs with a parameter": lambda: page.runs(where="params.`ppo.kl_coef` != '7'"),
        "stages of a pipeline run": lambda: page.runs(where=f"tags.mlflow.parentRunId = '{parent}'"),
        "one run": lambda: page.get(f"runs/get?run_id={parent}"),
        "chart of ten runs' losses": lambda: page.curves(trained, "train/loss"),
        "logged models": page.models,
        "versions of a registered model": lambda: page.versions("prefloop-policy"),
        "registered models": lambda: page.get("registered-models/search?max_results=25"),
        "experiments": lambda: page.post("experiments/search", max_results=25),
    }


def timed(ask: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each time; exits where nothing was found."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer = ask()
        found.append(time.perf_counter() - started)
        if not answer:
            sys.exit("an empty answer")
    return found


if __name__ == "__main__":
    address, repeats, first, last = sys.argv[1:]
    asked = questions(address, first, last)
    print(json.dumps({name: timed(ask, int(repeats)) for name, ask in asked.items()}))
