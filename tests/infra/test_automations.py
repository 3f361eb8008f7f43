"""The automations on a real server: what they react to, and what then happens."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Failed, State

from flows.automations import HEARTBEAT, LABELLED, install, put, webhook_url, zombies
from flows.settings import SKIPPED
from prefloop.errors import ConfigError, WorkspaceError
from tests.infra.conftest import Server
from tests.waiting import wait_until


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("PREFECT_API_URL", server.api)
    with temporary_settings({PREFECT_API_URL: server.api}), get_client(sync_client=True) as found:
        yield found


@pytest.fixture
def received() -> Iterator[tuple[str, list[Any]]]:
    """A web server's URL and the JSON that was posted to it."""
    bodies: list[Any] = []

    class Keep(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Keep) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}/hook", bodies
        web.shutdown()


def start_run(client: SyncPrefectClient, flow: str, name: str) -> FlowRun:
    """A flow run that is running, as the server knows it."""
    flow_id = client.create_flow_from_name(flow)
    body = {"flow_id": str(flow_id), "name": name, "state": {"type": "RUNNING", "name": "Running"}}
    answer = client.request("POST", "/flow_runs/", json=body)
    return client.read_flow_run(uuid.UUID(answer.json()["id"]))


def set_state(client: SyncPrefectClient, run: FlowRun, state: State[Any]) -> None:
    client.set_flow_run_state(run.id, state, force=True)


def emit(client: SyncPrefectClient, event: str, resource: str) -> None:
    """Posts an event as docs/operations.md shows it for a labelling tool."""
    body = {
        "id": str(uuid.uuid4()),
        "event": event,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": resource},
    }
    assert client.request("POST", "/events", json=[body]).status_code == 204


def automations(client: SyncPrefectClient, name: str) -> list[Any]:
    return [item for item in client.read_automations() if item.name == name]


def test_a_webhook_comes_from_the_environment_or_a_file(monkeypatch, tmp_path):
    for name in ("PREFLOOP_WEBHOOK_URL", "PREFLOOP_WEBHOOK_URL_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert webhook_url() == ""
    monkeypatch.setenv("PREFLOOP_WEBHOOK_URL", "https://chat.example.org/a")
    assert webhook_url() == "https://chat.example.org/a"
    (tmp_path / "url").write_text("https://chat.example.org/b\n")
    monkeypatch.setenv("PREFLOOP_WEBHOOK_URL_FILE", str(tmp_path / "url"))
    assert webhook_url() == "https://chat.example.org/b"
    monkeypatch.setenv("PREFLOOP_WEBHOOK_URL_FILE", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="PREFLOOP_WEBHOOK_URL_FILE"):
        webhook_url()


@pytest.mark.slow
def test_what_somebody_changed_is_brought_back_and_what_was_switched_off_stays_off(client):
    (before,) = automations(client, "prefloop zombie runs")
    values = before.model_dump(exclude={"id", "owner_resource"})
    changed = AutomationCore.model_validate({**values, "description": "mine", "enabled": False})
    client.update_automation(before.id, changed)
    try:
        assert put(client, zombies()) == "prefloop zombie runs: brought up to date"
        (after,) = automations(client, "prefloop zombie runs")
        assert (after.id, after.description, after.enabled) == (before.id, before.description, False)
        assert put(client, zombies()) == "prefloop zombie runs: unchanged"
    finally:
        client.resume_automation(before.id)


@pytest.mark.slow
def test_a_run_without_heartbeats_is_marked_as_crashed_and_one_that_ended_is_not(client, server):
    put(client, zombies(timedelta(seconds=20)))
    try:
        gone, ended, idle = (start_run(client, "prefloop-run", name) for name in ("gone", "ended", "idle"))
        silent = start_run(client, "prefloop-run", "never sent a heartbeat")
        for run, end in ((ended, Completed()), (idle, Completed(name=SKIPPED)), (gone, None)):
            until_counted(server, run, {0}, partial(emit, client, HEARTBEAT, f"prefect.flow-run.{run.id}"))
            if end:  # what needs no heartbeat any more is soon forgotten
                until_counted(server, run, {1, None}, partial(set_state, client, run, end))
        wait_until(lambda: client.read_flow_run(gone.id).state.is_crashed(), 90)
        assert "no heartbeat for 20 s" in str(client.read_flow_run(gone.id).state.message)
        assert client.read_flow_run(ended.id).state.is_completed()
        assert client.read_flow_run(idle.id).state.name == SKIPPED
        assert client.read_flow_run(silent.id).state.is_running(), "nothing is known of it"
        set_state(client, silent, Completed())
    finally:
        put(client, zombies())


def until_counted(server: Server, run: FlowRun, counts: set[int | None], send: Callable[[], None]) -> None:
    """Sends an event until the server has counted it; within 15 s, before the run counts as silent."""
    resend(send, lambda: counted(server, run) in counts, 5)


def resend(send: Callable[[], None], arrived: Callable[[], Any], seconds: float = 30) -> None:
    """Sends an event up to three times, each time waiting so many seconds for it to arrive.

    Prefect drops an event for which its SQLite was locked four times, as happens on a busy machine.
    """
    for _ in range(2):
        send()
        with suppress(AssertionError):
            wait_until(arrived, seconds)
            return
    send()
    wait_until(arrived, seconds)


def counted(server: Server, run: FlowRun) -> int | None:
    """How many events that end the wait came since a run's heartbeat; None while nothing is waited for."""
    with closing(sqlite3.connect(f"file:{server.folder}/prefect/prefect.db?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT bucketing_key, count FROM automation_bucket").fetchall()
    return dict(rows).get(json.dumps([f"prefect.flow-run.{run.id}"]))


@pytest.mark.slow
def test_a_failed_run_of_ours_is_told_to_the_webhook_whatever_it_says(client, received):
    url, bodies = received
    lines = list(install(client, url))
    assert "prefloop failed runs: made" in lines
    other, ours = start_run(client, "somebody-elses", "other"), start_run(client, "prefloop-run", 'a "name"')
    failed: State[Any] = Failed(message='exit code 3\n"row" 7: <b>{{ flow }}</b>')
    set_state(client, other, failed)
    resend(lambda: set_state(client, ours, failed), lambda: bodies)
    (body,) = bodies
    assert body["run"] == 'a "name"'
    assert body["flow"] == "prefloop-run"
    assert body["state"] == "Failed"
    assert body["message"] == 'exit code 3\n"row" 7: <b>{{ flow }}</b>'
    assert str(ours.id) in body["page"]
    again = list(install(client, url))
    assert "prefloop failed runs: unchanged" in again
    (automation,) = automations(client, "prefloop failed runs")
    client.delete_automation(automation.id)


@pytest.mark.slow
def test_a_labelled_batch_starts_data_changed_and_another_event_does_not(client):
    deployment = client.read_deployment_by_name("prefloop-run/data-changed")

    def runs() -> list[FlowRun]:
        return [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]

    before = len(runs())
    emit(client, "somebody.elses.event", "labels.7")
    resend(lambda: emit(client, LABELLED, "prefloop.batch.7"), lambda: len(runs()) > before)
    assert len(runs()) == before + 1
    for run in runs():
        client.delete_flow_run(run.id)


@pytest.mark.slow
def test_a_server_without_the_deployment_gets_a_word_on_what_to_do(client, monkeypatch):
    monkeypatch.setattr("flows.automations.DEPLOYMENT", "prefloop-run/not-there")
    with pytest.raises(WorkspaceError, match="no deployment prefloop-run/not-there"):
        list(install(client))


def test_a_webhook_that_is_no_url_is_refused_before_anything_is_saved():
    from flows.automations import save_webhook

    for wrong in ("chat.example.org", "file:///etc/passwd", "http://"):
        with pytest.raises(ConfigError, match="no http or https URL"):
            save_webhook(None, wrong)
