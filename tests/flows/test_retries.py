"""What is tried again, after which waits, and what is not."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from flows.retries import Patience, is_fault, persist
from flows.stage_run import StageFailed
from flows.supervision import Stopped
from prefloop.errors import (
    ConfigError,
    DataError,
    InfrastructureError,
    ModelError,
    TrainingError,
    WorkspaceError,
)


def failed(code: int) -> StageFailed:
    return StageFailed("sft", code, Path("log"), ["its last line"])


def test_waits_double_and_a_little_is_added_by_chance() -> None:
    assert list(Patience(4, 10.0).waits(lambda: 0.0)) == [10.0, 20.0, 40.0, 80.0]
    assert list(Patience(3, 10.0).waits(lambda: 1.0)) == [12.0, 24.0, 48.0]
    drawn = list(Patience(200, 1e-60).waits())
    shares = [wait / (1e-60 * 2**i) for i, wait in enumerate(drawn)]
    assert min(shares) >= 1
    assert max(shares) <= 1.2
    assert len({round(share, 6) for share in shares}) > 100, "all at the same moment again"
    assert list(Patience(0, 10.0).waits()) == []


@pytest.mark.parametrize(
    ("error", "here", "elsewhere"),
    [
        (failed(137), True, True),  # SIGKILL, as of the kernel when memory runs out
        (failed(1), False, False),
        (failed(2), False, False),
        (failed(3), False, False),
        (failed(5), False, False),  # a NaN
        (failed(6), False, False),  # the stage's own disk is full
        (failed(7), True, True),
        (failed(130), False, False),
        (failed(139), False, False),  # SIGSEGV: the same code would do it again
        (failed(143), False, False),  # somebody asked it to end
        (InfrastructureError("a worker is gone"), True, True),
        (ConfigError("a wrong key"), False, False),
        (DataError("a bad row"), False, False),
        (ModelError("no tokenizer"), False, False),
        (TrainingError("NaN"), False, False),
        (WorkspaceError("`dvc push` failed: connection refused"), False, True),
        (WorkspaceError("`dvc push` failed: [Errno 28] No space left on device"), False, False),
        (OSError(errno.ESTALE, "stale file handle"), True, True),
        (OSError(errno.ENOSPC, "no space"), False, False),
        (FileNotFoundError(errno.ENOENT, "no such file"), False, False),
        (ConnectionResetError(), True, True),
        (TimeoutError(), True, True),
        (ValueError("a defect"), False, False),
    ],
)
def test_what_counts_as_a_fault_of_the_infrastructure(error: Exception, here: bool, elsewhere: bool) -> None:
    assert is_fault(error) == here
    assert is_fault(error, elsewhere=True) == elsewhere


def test_a_full_disk_is_found_behind_what_came_of_it() -> None:
    error = InfrastructureError("a file could not be written")
    assert is_fault(error)
    error.__cause__ = OSError(errno.ENOSPC, "no space")
    assert not is_fault(error)


class Stage:
    """Fails so often, then ends well."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.runs = 0

    def __call__(self) -> str:
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def persistently(
    stage: Stage, retries: int = 3, **options: object
) -> tuple[tuple[str, tuple[str, ...]], list[str]]:
    said: list[str] = []
    settings = {"elsewhere": False, "stopped": lambda: False, "say": said.append} | options
    return persist("sft", stage, Patience(retries, 0.01), **settings), said  # type: ignore[arg-type]


def test_it_is_tried_again_and_says_so_each_time() -> None:
    stage = Stage(failed(137), InfrastructureError("worker 3 is gone\nmore words"))
    (result, faults), said = persistently(stage)
    assert (result, stage.runs) == ("done", 3)
    assert faults == (
        "a process of the stage was killed (SIGKILL), as the kernel does when memory runs out",
        "worker 3 is gone",
    )
    assert said[0].startswith("sft  attempt 1 of 4 was lost to the infrastructure: a process")
    assert said[1].startswith(
        "sft  attempt 2 of 4 was lost to the infrastructure: worker 3 is gone; again in 0 s"
    )


def test_its_own_failure_is_not_tried_again() -> None:
    stage = Stage(failed(5))
    with pytest.raises(StageFailed) as caught:
        persistently(stage)
    assert (stage.runs, caught.value.exit_code) == (1, 5)
    assert "attempts" not in str(caught.value)


def test_after_the_last_attempt_the_error_says_how_many_there_were() -> None:
    stage = Stage(*[failed(137)] * 9)
    with pytest.raises(StageFailed) as caught:
        persistently(stage, retries=2)
    assert (stage.runs, caught.value.exit_code) == (3, 137)
    assert "(3 attempts, each lost to the infrastructure)" in str(caught.value)


def test_a_run_that_is_asked_to_end_waits_for_no_attempt() -> None:
    stage, asked = Stage(failed(137)), iter([False, False, True])
    started = time.monotonic()
    with pytest.raises(Stopped):
        persist(
            "sft", stage, Patience(1, 60.0),
            elsewhere=False, stopped=lambda: next(asked, True), say=lambda text: None,
        )  # fmt: skip
    assert time.monotonic() - started < 10
    assert stage.runs == 1
