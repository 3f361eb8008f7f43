"""What the soak's checks see: each finds what it is there for, and a sound state passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.support.spool import waiting
from tests.soak.checks import Expected, Struck, _metrics, _results, _state, curve
from tests.soak.faults import FAULTS
from tests.soak.soak import MISSING, schedule

HASHES = {"models/sft": "aa.dir", "data/raw/x.jsonl": "bb"}
WANT = Expected(HASHES, {"data/raw/x.jsonl": 2}, {"sft": {"loss": [0.5, 0.25, 0.125]}}, 10.0)


@pytest.fixture
def world(tmp_path: Any) -> Any:
    """A workspace as a run leaves it, without having run."""
    for folder in ("data/raw", "runs", ".prefloop/spool", ".prefloop/locks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data/raw/x.jsonl").write_text("{}\n{}\n")
    (tmp_path / "runs/sft.json").write_text('{"run": "r2", "key": "k", "resumed_from_step": 2}')
    outs = [f"{{path: {path}, md5: {digest}}}" for path, digest in HASHES.items()]
    lines = f"stages: {{sft: {{outs: [{', '.join(outs)}, {{path: runs/sft.json, md5: any}}]}}}}"
    (tmp_path / "dvc.lock").write_text(lines)
    pipeline = SimpleNamespace(trainers={"sft": 3})
    state = tmp_path / ".prefloop"
    return SimpleNamespace(
        root=tmp_path,
        state=state,
        pipeline=pipeline,
        homes=[tmp_path],
        undelivered=lambda: waiting(state / "spool"),
    )


def tracking(*runs: tuple[str, str, dict[int, set[float]]]) -> Any:
    """MLflow with these runs of sft: (our id, status, step -> values)."""
    made = [
        SimpleNamespace(
            info=SimpleNamespace(run_id=name, run_name=name, status=status),
            data=SimpleNamespace(tags={"prefloop.stage": "sft", "prefloop.run": name}),
            points=points,
        )
        for name, status, points in runs
    ]
    return SimpleNamespace(new_runs=lambda: made, history=lambda run, _metric: run.points)


WHOLE: dict[int, set[float]] = {1: {0.5}, 2: {0.25}, 3: {0.125}}
CUT: dict[int, set[float]] = {1: {0.5}, 2: {0.25}}
STRUCK = Struck("sft", step=2, checkpoint=2, cuts=True)


def test_a_killed_run_and_the_one_that_went_on_are_as_they_should_be(world: Any) -> None:
    kept = tracking(("r1", "KILLED", CUT), ("r2", "FINISHED", WHOLE))
    assert [*_results(world, WANT), *_state(world), *_metrics(world, WANT, kept, STRUCK)] == []


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([("r1", "KILLED", CUT), ("r2", "FINISHED", {1: {0.5}, 3: {0.125}})], "steps [1, 3]"),
        ([("r1", "KILLED", CUT), ("r2", "FINISHED", CUT)], "2 of 3 steps"),
        ([("r1", "KILLED", CUT), ("r2", "FINISHED", WHOLE | {2: {0.25, 0.3}})], "other values at steps [2]"),
        ([("r1", "RUNNING", CUT), ("r2", "FINISHED", WHOLE)], "is still RUNNING"),
        ([("r1", "KILLED", CUT)], "not the one that ended well"),
    ],
)
def test_a_gap_a_second_value_a_missing_run_are_found(world: Any, runs: Any, said: str) -> None:
    found = list(_metrics(world, WANT, tracking(*runs), STRUCK))
    assert any(said in line for line in found), found


def test_steps_and_checkpoints_that_were_lost_are_found(world: Any) -> None:
    kept = tracking(("r1", "KILLED", {}), ("r2", "FINISHED", CUT))
    found = list(_metrics(world, WANT, kept, Struck("sft", step=4, checkpoint=3, cuts=True)))
    assert "sft had logged 4 steps, MLflow has 2" in found
    assert "sft went on after step 2, with a checkpoint of 3 there" in found


def test_another_hash_a_lost_row_an_undelivered_event_a_held_mark_are_found(world: Any) -> None:
    lock = world.root / "dvc.lock"
    lock.write_text(lock.read_text().replace("aa.dir", "cc.dir"))
    (world.root / "data/raw/x.jsonl").write_text("{}\n")
    assert [line.split()[0] for line in _results(world, WANT)] == ["models/sft", "rows:"]
    (world.state / "spool/r.jsonl").write_text("{}\n")
    (world.state / "unfinished").mkdir()
    (world.state / "unfinished/sft").write_text("sft")
    (world.state / "crashes").mkdir()
    (world.state / "crashes/one.txt").write_text("Traceback\nKeyError: 'x'\n")
    assert sorted(_state(world)) == [
        "an error of prefloop's own: KeyError: 'x'",
        "events of 1 runs wait in the spool",
        "marked as unfinished: ['sft']",
    ]


def test_a_curve_has_the_metrics_that_every_step_has(tmp_path: Any) -> None:
    (tmp_path / "sft.csv").write_text("step,loss,eval\n1,0.5,\n2,0.25,1.0\n")
    assert curve(tmp_path / "sft.csv") == {"loss": [0.5, 0.25]}


def test_a_schedule_follows_from_its_seed_and_has_every_kind_equally_often() -> None:
    everything = frozenset(MISSING)
    found = schedule(2 * len(FAULTS), 7, everything)
    assert found == schedule(2 * len(FAULTS), 7, everything)
    assert found != schedule(2 * len(FAULTS), 8, everything)
    assert all(found.count(fault) == 2 for fault in FAULTS)
    assert not any(fault.needs for fault in schedule(50, 0, frozenset()))
