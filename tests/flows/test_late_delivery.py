"""A run without work delivers what waits since the tracking server was away."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

import flows.late_delivery
from flows.late_delivery import deliver_late
from flows.stage_run import StageFailed
from prefloop.files import write_json
from tasks.support.spool import SpoolWriter, spool_folder, write_state


class Commands:
    """In place of processes: what was asked for, and whether the tracking server is there."""

    def __init__(self, *, away: bool = False) -> None:
        self.asked: list[str] = []
        self.away = away

    def __call__(self, supervisor, what, command, show) -> None:
        self.asked.append(command)
        if self.away:
            raise StageFailed(what, 4, Path("logs"), [])


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFLOOP_TRACKING", raising=False)
    return SimpleNamespace(root=tmp_path)


def deliver(workspace: SimpleNamespace, commands: Commands, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(flows.late_delivery, "run_command", commands)
    said: list[str] = []
    deliver_late(workspace, lambda what, line: said.append(line))
    return said


def test_nothing_waits_then_nothing_is_started(workspace, monkeypatch) -> None:
    writer = SpoolWriter("one")
    writer.append("metric", value=1.0)
    write_state(writer.path, {"offset": writer.path.stat().st_size})
    commands = Commands()
    assert deliver(workspace, commands, monkeypatch) == []
    assert commands.asked == []


def test_what_waits_is_delivered_and_the_decision_applied(workspace, monkeypatch) -> None:
    SpoolWriter("one").append("metric", value=1.0)
    write_json(Path("metrics/promote.json"), {"applied": False, "because": "the store was away"})
    commands = Commands()
    said = deliver(workspace, commands, monkeypatch)
    assert said == ["delivering what 1 run(s) could not deliver"]
    assert commands.asked == ["python -m tasks.deliver", "python -m tasks.promote"]


def test_a_decision_that_was_applied_is_left_alone(workspace, monkeypatch) -> None:
    SpoolWriter("one").append("metric", value=1.0)
    write_json(Path("metrics/promote.json"), {"applied": True})
    commands = Commands()
    deliver(workspace, commands, monkeypatch)
    assert commands.asked == ["python -m tasks.deliver"]


def test_a_server_that_is_still_away_fails_nothing(workspace, monkeypatch) -> None:
    SpoolWriter("one").append("metric", value=1.0)
    commands = Commands(away=True)
    said = deliver(workspace, commands, monkeypatch)
    assert "still away" in said[-1]
    assert len(list(spool_folder().glob("*.jsonl"))) == 1


def test_tracking_that_is_off_stays_off(workspace, monkeypatch) -> None:
    SpoolWriter("one").append("metric", value=1.0)
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    commands = Commands()
    assert deliver(workspace, commands, monkeypatch) == []
    assert commands.asked == []
