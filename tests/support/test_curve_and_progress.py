"""The learning curve that survives a kill, and the progress line."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.support.curve import Curve, write_csv
from tasks.support.progress import Progress, clock, progress_line


def log(curve, steps):
    for step in steps:
        curve.append(step, {"loss": 1 / step, "reward": step / 7})


@given(killed_at=st.integers(2, 12), checkpoint=st.integers(0, 11))
def test_a_resumed_curve_has_the_bytes_of_an_undisturbed_one(tmp_path_factory, killed_at, checkpoint):
    folder = tmp_path_factory.mktemp("curve")
    undisturbed = Curve(folder / "undisturbed.jsonl")
    log(undisturbed, range(1, 13))
    killed = Curve(folder / "killed.jsonl")
    log(killed, range(1, killed_at + 1))
    with open(killed.path, "a") as handle:
        handle.write('{"step": 99, "lo')  # what a kill leaves of a line
    resumed = Curve(killed.path)
    checkpoint = min(checkpoint, killed_at)
    resumed.cut(checkpoint)
    log(resumed, range(checkpoint + 1, 13))
    write_csv(folder / "a.csv", undisturbed.rows())
    write_csv(folder / "b.csv", resumed.rows())
    assert (folder / "a.csv").read_bytes() == (folder / "b.csv").read_bytes()


def test_a_start_without_resume_forgets_the_old_rows(tmp_path):
    log(Curve(tmp_path / "c.jsonl"), range(1, 6))
    again = Curve(tmp_path / "c.jsonl")
    log(again, range(1, 3))
    assert [row["step"] for row in again.rows()] == [1, 2]


def test_csv_merges_a_step_and_leaves_what_is_not_finite_empty(tmp_path):
    curve = Curve(tmp_path / "c.jsonl")
    curve.append(1, {"loss": 2.0})
    curve.append(2, {"loss": math.nan, "kl": math.inf})
    curve.append(2, {"eval": 0.25})
    write_csv(tmp_path / "c.csv", curve.rows())
    rows = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert rows == [{"step": "1", "loss": "2.0", "eval": ""}, {"step": "2", "loss": "", "eval": "0.25"}]


def test_progress_line_by_hand():
    line = progress_line("sft", 120, 400, 4.1, {"loss": 1.234})
    assert line == "sft  step 120/400  30 %  4.1 it/s  left 0:01:08  loss 1.234"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_slow_steps_are_shown_in_seconds_each():
    assert "2.0 s/it" in progress_line("ppo", 1, 10, 0.5, {})


def test_piped_progress_is_whole_lines_and_the_last_step_always_shows():
    stream = io.StringIO()
    progress = Progress("sft", stream)
    for step in range(1, 101):
        progress.update(step, 100, {"loss": 1.0})
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("sft  step 1/100")
    assert lines[-1].startswith("sft  step 100/100")
    assert len(lines) == 2
    assert "\r" not in stream.getvalue()


def test_a_closed_stream_does_not_stop_training():
    stream = io.StringIO()
    progress = Progress("sft", stream)
    stream.close()
    progress.update(1, 1, {})
    progress.close()
