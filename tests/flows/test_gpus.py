"""GPUs and memory of this machine: who gets which, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import flows.gpus
import flows.room
from flows.gpus import own_gpus
from flows.planning.model import Action, Place, StagePlan
from flows.room import Room, memory_here, refuse_what_has_no_room, visible_gpus
from flows.supervision import Stopped
from prefloop.errors import ConfigError
from tests.waiting import wait_until

GIB = 2**30
FOUR = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.gpus, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(flows.gpus, "installed_gpus", lambda: [("0", "GPU-a"), ("1", "GPU-b")])


def seen(variables: dict[str, str]) -> str:
    return variables["CUDA_VISIBLE_DEVICES"]


def test_stages_side_by_side_get_different_gpus(tmp_path: Path) -> None:
    with own_gpus(1, FOUR, folder=tmp_path) as first, own_gpus(2, FOUR, folder=tmp_path) as second:
        assert (seen(first), seen(second)) == ("GPU-a", "GPU-b,GPU-c")
        with own_gpus(1, FOUR, folder=tmp_path) as third:
            assert seen(third) == "GPU-d"
    with own_gpus(4, FOUR, folder=tmp_path) as whole:
        assert seen(whole) == "GPU-a,GPU-b,GPU-c,GPU-d"


def test_none_are_asked_for_and_nothing_is_hidden(tmp_path: Path) -> None:
    with own_gpus(0, FOUR, folder=tmp_path) as variables:
        assert variables == {}


def test_it_waits_for_enough_and_holds_none_meanwhile(tmp_path: Path) -> None:
    said: list[str] = []
    begun = threading.Event()

    def three() -> None:
        with own_gpus(3, FOUR, folder=tmp_path, say=said.append):
            begun.set()

    with own_gpus(2, FOUR, folder=tmp_path):
        thread = threading.Thread(target=three, daemon=True)
        thread.start()
        wait_until(lambda: said, 20)
        with own_gpus(2, FOUR, folder=tmp_path) as rest:  # what a waiting stage kept could not be had
            assert seen(rest) == "GPU-c,GPU-d"
            assert not begun.wait(0.1)
    assert begun.wait(20)
    thread.join(20)
    assert said == ["waits for 3 of 4 GPUs of this machine"]


def test_a_run_that_is_asked_to_end_waits_for_no_gpu(tmp_path: Path) -> None:
    with (
        own_gpus(4, FOUR, folder=tmp_path),
        pytest.raises(Stopped),
        own_gpus(1, FOUR, folder=tmp_path, stopped=lambda: True),
    ):
        pass


def test_gpus_of_a_process_that_was_killed_are_free(tmp_path: Path) -> None:
    holds = (
        "import time; from pathlib import Path; from flows.gpus import own_gpus\n"
        f"with own_gpus(4, {FOUR!r}, folder=Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(Stopped), own_gpus(1, FOUR, folder=tmp_path, stopped=lambda: True):
        pass
    other.kill()
    other.wait()
    with own_gpus(4, FOUR, folder=tmp_path) as variables:
        assert len(seen(variables).split(",")) == 4


def test_a_number_and_a_lasting_name_are_the_same_gpu(tmp_path: Path) -> None:
    with own_gpus(1, ("1",), folder=tmp_path) as variables:
        assert seen(variables) == "1"
        with pytest.raises(Stopped), own_gpus(1, ("GPU-b",), folder=tmp_path, stopped=lambda: True):
            pass


@pytest.mark.parametrize(
    ("named", "gpus"),
    [
        ("0,1", ("0", "1")),
        ("GPU-b", ("GPU-b",)),
        ("", ()),
        ("-1", ()),
        ("2,-1,3", ("2",)),
        (" 0 , 1 ", ("0", "1")),
    ],
)
def test_visible_are_those_that_the_environment_names(
    named: str, gpus: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == gpus


def test_where_it_names_none_the_driver_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho '0, GPU-a'\necho '1, GPU-b'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_gpus() == ("GPU-a", "GPU-b")
    driver.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert visible_gpus() == ()


def test_a_container_may_use_less_memory_than_the_machine_has(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    whole = memory_here(limit)
    assert whole > 0
    limit.write_text("1048576\n")
    assert memory_here(limit) == 1048576
    limit.write_text("max\n")
    assert memory_here(limit) == whole


def stage(place: Place, action: Action = Action.RUN) -> StagePlan:
    return StagePlan("ppo@ppo", action, (), place=place)


def test_a_stage_that_asks_for_more_than_there_is_is_refused() -> None:
    room = Room(("0", "1"), 16 * GIB)
    with pytest.raises(ConfigError) as caught:
        refuse_what_has_no_room([stage(Place(gpus=3))], room)
    assert caught.value.message == "stage ppo@ppo asks for 3 GPUs, and 2 can be seen here"
    assert caught.value.remedy.startswith("set resources.stages.ppo.gpu to 2, or send it to a pool")
    with pytest.raises(ConfigError, match="asks for 17 GiB of memory, and this machine has 16 GiB"):
        refuse_what_has_no_room([stage(Place(memory=17 * GIB))], room)


def test_what_fits_or_runs_elsewhere_or_not_at_all_is_not_refused() -> None:
    room = Room(("0", "1"), 16 * GIB)
    for place, action in (
        (Place(gpus=2, memory=16 * GIB), Action.RUN),
        (Place("gpu", gpus=8, memory=99 * GIB), Action.RUN),
        (Place(gpus=8), Action.SKIP),
    ):
        refuse_what_has_no_room([stage(place, action)], room)
    refuse_what_has_no_room([stage(Place(memory=99 * GIB))], Room(memory=0))
