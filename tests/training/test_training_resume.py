"""A training that was stopped and resumed ends with the bytes of one that was not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from prefloop.errors import ModelError, StopRequested
from prefloop.training.checkpoints import Checkpoints
from tests.tiny import StopAfter, StopAtCall
from tests.training.trainings import ON_POLICY, TRAININGS, Weights

SEED = 20240229


def assert_same_bytes(one: Weights, other: Weights) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


# The other on-policy ones are stopped at every update below.
@pytest.mark.parametrize("name", [name for name in TRAININGS if name == "ppo" or name not in ON_POLICY])
def test_a_training_stopped_at_random_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    train = TRAININGS[name]
    undisturbed = StopAfter()
    expected = train(tmp_path / "undisturbed", undisturbed)
    total = len(undisturbed.rows)
    stop = random.Random(f"{SEED} {name}").randrange(1, total + 1)
    first = StopAfter(stop)
    with pytest.raises(StopRequested, match=f"step {stop} of {total}"):
        train(tmp_path / "stopped", first)
    second = StopAfter()
    assert_same_bytes(train(tmp_path / "stopped", second), expected)
    assert second.resumed_at == stop
    assert first.rows + second.rows == undisturbed.rows


def test_a_training_stopped_twice_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    train = TRAININGS["ppo"]
    expected = train(tmp_path / "undisturbed", StopAfter())
    for stop in (2, 3):
        with pytest.raises(StopRequested):
            train(tmp_path / "stopped", StopAfter(stop))
    assert_same_bytes(train(tmp_path / "stopped", StopAfter()), expected)


@pytest.mark.parametrize("name", ON_POLICY)
def test_a_training_stopped_at_every_update_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    train, small = TRAININGS[name], {"steps": 2, "inner_epochs": 2, "minibatches": 2, "select_every": 1}
    undisturbed = StopAfter()
    expected = train(tmp_path / "undisturbed", undisturbed, **small)
    rows: list[dict[str, float]] = []
    stops = []
    while True:
        # It asks before each update and after each step: at the second call one update lies behind it.
        recorder = StopAtCall(2)
        try:
            found = train(tmp_path / "stopped", recorder, **small)
        except StopRequested as stop:
            stops.append(str(stop))
            rows += recorder.rows
        else:
            rows += recorder.rows
            break
    assert_same_bytes(found, expected)
    assert rows == undisturbed.rows
    places = [stop.partition("step ")[2].partition(";")[0] for stop in stops]
    inner = [[f"{n} of 2 and {done} updates of the next" for done in (1, 2, 3)] for n in (0, 1)]
    assert places == [*inner[0], "1 of 2", *inner[1], "2 of 2"]


def test_checkpoints_between_updates_change_nothing(tmp_path: Path) -> None:
    train = TRAININGS["ppo"]
    assert_same_bytes(
        train(tmp_path / "often", StopAfter(), every=0.0), train(tmp_path / "never", StopAfter())
    )
    names = sorted(path.name for path in (tmp_path / "often").iterdir())
    # The two newest: before the third and the last update of the last step.
    assert names == ["checkpoint-00000004-000003", "checkpoint-00000004-000004"]


def test_what_is_computed_does_not_depend_on_how_often_checkpoints_are_written(tmp_path: Path) -> None:
    train = TRAININGS["sft"]
    assert_same_bytes(
        train(tmp_path / "often", StopAfter(), every=0.0), train(tmp_path / "never", StopAfter())
    )


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no description", "no state"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(damage: str, tmp_path: Path) -> None:
    train = TRAININGS["sft"]
    expected = train(tmp_path / "undisturbed", StopAfter())
    with pytest.raises(StopRequested):
        train(tmp_path / "stopped", StopAfter(4), every=0.0)
    newest = tmp_path / "stopped" / "checkpoint-00000004"
    state = newest / "state.pt"
    content = bytearray(state.read_bytes())
    if damage == "truncated":
        state.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        state.write_bytes(content)
    elif damage == "no description":
        (newest / "checkpoint.json").unlink()
    else:
        state.unlink()
    recorder = StopAfter()
    assert_same_bytes(train(tmp_path / "stopped", recorder), expected)
    assert recorder.resumed_at == 3


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "scratch", 0.0)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, {"value": torch.tensor(step)})
    names = sorted(path.name for path in (tmp_path / "scratch").iterdir())
    assert names == ["checkpoint-00000002", "checkpoint-00000003"]
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 3
    assert found[1]["value"].item() == 3


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "attacked",))  # type: ignore[return-value]

    checkpoints = Checkpoints(tmp_path / "scratch", 0.0)
    checkpoints.save(1, {"value": torch.tensor(1)})
    checkpoints.save(2, {"value": Attack()})
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 1
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_a_checkpoint_of_another_shape_is_refused(name: str, tmp_path: Path) -> None:
    train = TRAININGS[name]
    with pytest.raises(StopRequested):
        train(tmp_path / "stopped", StopAfter(1), width=16)
    with pytest.raises(ModelError, match="does not fit this model"):
        train(tmp_path / "stopped", StopAfter(), width=32)
