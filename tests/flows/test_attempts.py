"""Attempts at a stage on a pool, without a server: what tells them apart, and when one counts as lost."""

from __future__ import annotations

from types import SimpleNamespace

import httpx
import pytest

from flows.planning.model import Place
from flows.supervision import Stopped
from flows.workers.attempts import stage_key
from flows.workers.outcome import read_failure, write_failure
from flows.workers.patience import PatientClient, is_absence
from flows.workers.pool import job_variables
from flows.workers.waiting import Vigil
from prefloop.errors import InfrastructureError

WHERE = {"pool": "gpu"}


def test_a_key_follows_from_what_the_stage_computes(finished):
    root = finished.root

    def key(stage="ppo", **where):
        return stage_key(root, stage, where or WHERE)

    before = key()
    assert key() == before
    assert key("dpo") != before
    assert key(pool="other") != before
    finished.edit("params.yaml", "beta: 0.1", "beta: 0.2")
    (root / "notes.txt").write_text("what no stage reads")
    assert key() == before, "what it does not read is nothing to it"
    finished.edit("params.yaml", "kl_coef: 0.05", "kl_coef: 0.1")
    assert key() != before
    finished.edit("params.yaml", "kl_coef: 0.1", "kl_coef: 0.05")
    (root / "models/sft/weights").unlink()
    assert key() == before, "dvc.lock knows what it reads, though it is not here"
    (root / "work.py").write_text((root / "work.py").read_text() + "\n# another\n")
    assert key() != before


def test_a_key_follows_from_a_folder_in_which_several_stages_write(finished):
    before = stage_key(finished.root, "report", WHERE)
    lock = (finished.root / "dvc.lock").read_text()
    first = lock.index("evaluate@ppo")
    at = lock.index("md5: ", lock.index("outs:", first)) + 5
    changed = lock[:at] + ("0" if lock[at] != "0" else "1") + lock[at + 1 :]
    (finished.root / "dvc.lock").write_text(changed)
    assert stage_key(finished.root, "report", WHERE) != before


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_time_without_a_change():
    clock = Clock()
    vigil = Vigil(clock)
    assert vigil.silence("running 1") == 0
    clock.now += 30
    assert vigil.silence("running 1") == 30
    clock.now += 10
    assert vigil.silence("running 2") == 0
    clock.now += 5
    assert vigil.silence("running 2") == 5
    assert vigil.silence("running 1") == 0, "a count that goes back is a change, too"


def test_what_could_not_be_seen_is_nobodys_silence():
    clock = Clock()
    vigil = Vigil(clock)
    vigil.silence(7)
    clock.now += 600
    vigil.blind()
    assert vigil.silence(7) == 0
    clock.now += 50
    assert vigil.silence(7) == 50


def test_a_failure_is_read_as_it_was_written():
    assert read_failure(write_failure(5, ["NaN at step 3", "  remedy: a smaller rate"])) == (
        5,
        ["NaN at step 3", "  remedy: a smaller rate"],
    )
    assert read_failure("Flow could not be retrieved") == (1, ["Flow could not be retrieved"])
    assert read_failure("") == (1, [])


def answered(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://server")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("slow"), True),
        (ConnectionResetError(), True),
        (answered(503), True),
        (answered(429), True),
        (answered(404), False),
        (answered(401), False),
        (ValueError(), False),
    ],
)
def test_a_server_that_says_no_is_not_away(error, away):
    assert is_absence(error) == away


@pytest.fixture
def patiently(monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # nobody is asked anything
    monkeypatch.setattr("flows.workers.patience.POLL_SECONDS", 0.01)
    said = []

    def make(seconds=60.0, stopped=lambda: False):
        return PatientClient(seconds, stopped, said.append), said

    return make


def fails(times):
    left = [httpx.ConnectError("refused")] * times

    def ask(client):
        if left:
            raise left.pop()
        return "an answer"

    return ask


def test_a_server_that_comes_back_was_waited_for(patiently):
    client, said = patiently()
    assert client(fails(0)) == "an answer"
    assert (client.absences, said) == (0, [])
    assert client(fails(3)) == "an answer"
    assert client.absences == 1
    assert said == [
        "the Prefect server does not answer: waiting up to 60 s for it",
        "the Prefect server answers again",
    ]


def test_it_is_not_waited_for_without_end(patiently):
    client, _ = patiently(seconds=0.05)
    with pytest.raises(InfrastructureError, match="did not answer for 0 s: refused"):
        client(fails(10_000))


def test_a_run_that_is_asked_to_end_waits_for_no_server(patiently):
    client, _ = patiently(stopped=lambda: True)
    with pytest.raises(Stopped):
        client(fails(10_000))


def test_a_pools_jobs_are_given_what_the_stage_asks_for_as_far_as_they_know_it():
    known = {"gpus": {}, "memory_limit": {}, "image": {}}
    pool = SimpleNamespace(base_job_template={"variables": {"properties": known}})
    asked = job_variables(pool, Place("gpu", 2, 17_179_869_184))
    assert asked == {"gpus": 2, "memory_limit": "16384Mi"}
    assert job_variables(pool, Place("gpu")) == {}
    assert job_variables(SimpleNamespace(base_job_template={}), Place("gpu", 2, 5)) == {}
