"""Housekeeping of files, with a real DVC cache: what a branch needs stays, whenever it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from flows.keeping import collect
from flows.keeping.collect import Sweep, at_rest
from flows.keeping.model import Category, choose, seconds_of
from prefloop.errors import ConfigError, WorkspaceError
from tasks.support.keys import stage_key
from tasks.support.locks import held
from tests.flows.kept import Kept, gc, going


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Main has 1-1, `other` 2-2, a stash 5-5; 4-4 and 1-9 ran, and nobody kept their dvc.lock."""
    root = tmp_path_factory.mktemp("kept")
    before = Path.cwd()
    os.chdir(root)
    try:
        kept = Kept(root)
        kept.branch("other", 2, 2)
        kept.values(5, 5)
        kept.run()
        kept.git("stash", "-q")
        for values in ((4, 4), (1, 9), (1, 1)):
            kept.values(*values)
            kept.run()
        assert kept.git("status", "--porcelain") == ""
    finally:
        os.chdir(before)
    return root


@pytest.fixture
def kept(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_PIPELINE_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    workspace = Kept.__new__(Kept)
    workspace.root = root
    return workspace


def still_works(kept: Kept) -> None:
    """What every branch, and the stash, has is there; what ran besides runs again."""
    assert kept.plan() == {"ingest": "skip", "sft": "skip"}
    kept.checkout("other")
    assert kept.weights() == "rows of 2\nsft of 2\n"
    assert kept.run() == []  # `dvc checkout` leaves out what DVC does not cache, such as this metric
    assert kept.plan() == {"ingest": "skip", "sft": "skip"}
    kept.checkout("main")
    for value in (2, 5):  # of the other branch and of the stash: restored by their run-cache entries
        kept.values(value, value)
        assert kept.plan()["ingest"] == "restore"
        assert kept.run() == []
        assert kept.weights() == f"rows of {value}\nsft of {value}\n"
        assert json.loads((kept.root / "metrics/sft.json").read_text()) == {"loss": f"sft-{value}-{value}"}
    kept.values(1, 1)
    assert kept.run() == []
    assert kept.git("status", "--porcelain") == ""


def test_nothing_young_goes_and_a_dry_run_removes_nothing(kept):
    before = sorted(kept.objects())
    assert going(gc(older_than="30d", yes=True)["cache"], "object") == set()
    assert sorted(kept.objects()) == before
    found = gc()["cache"]
    # 4-4: rows with their folder, two records, weights with their folder, metrics. 1-9: the latter four.
    assert len(going(found, "object")) == 7 + 4
    assert len(going(found, "run-cache entry")) == 3
    assert sorted(kept.objects()) == before


def test_what_no_branch_needs_goes_and_everything_else_still_works(kept):
    assert len(going(gc(yes=True)["cache"], "object")) == 11
    assert going(gc()["cache"], "object") == set()
    still_works(kept)
    kept.values(4, 4)
    assert kept.run() == ["ingest-4", "sft-4-4"]


def test_a_commit_that_only_a_tag_or_a_detached_head_names_keeps_its_files(kept):
    kept.git("checkout", "-q", "--detach")
    kept.values(4, 4)
    assert kept.run() == []
    kept.commit()
    assert len(going(gc()["cache"], "object")) == 4  # 1-9
    kept.git("tag", "-a", "-m", "kept", "four")
    kept.checkout("main")
    assert len(going(gc(yes=True)["cache"], "object")) == 4
    kept.checkout("four")
    assert kept.weights() == "rows of 4\nsft of 4\n"


@pytest.mark.parametrize("calls", [1, 4, 12, 17])
def test_killed_in_the_middle_it_breaks_nothing_and_the_next_call_finishes(kept, calls):
    stale = kept.root / ".prefloop/scratch/sft/0ld"
    stale.mkdir(parents=True)
    for number in range(3):
        (stale / f"checkpoint-{number}").write_text("weights")
    pid = os.fork()
    if not pid:
        try:
            _removing_until(calls)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert stale.exists() is False  # never half of it
    still_works(kept)
    gc(yes=True)
    assert not (kept.root / ".prefloop/trash").exists()
    left = gc()
    assert [found["bytes"] for found in left.values()] == [0] * len(left)
    still_works(kept)


def _removing_until(calls: int) -> None:
    """Removes, and is killed as it is about to remove the given file."""
    with at_rest(Path(".")):
        sweep = Sweep(Path("."), (Category.SCRATCH, Category.CACHE), 0.0)
        left = calls

        def counted(original):
            def call(*arguments, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **options)

            return call

        os.unlink, os.remove = counted(os.unlink), counted(os.remove)
        sweep.remove()


def test_a_shared_cache_is_left_alone_until_told(kept):
    shutil.move(kept.root / ".dvc/cache", kept.root.parent / "cache")
    (kept.root / ".dvc/config.local").write_text(f"[cache]\n    dir = {kept.root.parent / 'cache'}\n")
    found = gc(yes=True)["cache"]
    assert "--shared-cache" in found["blocked"]
    assert found["items"] == []
    assert len(going(gc(shared_cache=True)["cache"], "object")) == 11


def test_scratch_stays_for_the_key_that_a_stage_has_and_for_who_works_in_it(kept):
    scratch = kept.root / ".prefloop/scratch"
    current = stage_key("sft", {})
    for label, key in (("sft", current), ("sft", "old"), ("sft", "live"), ("gone", "any")):
        (scratch / label / key).mkdir(parents=True)
        (scratch / label / key / "checkpoint").write_text("weights")
        (scratch / label / f"{key}.lock").touch()
    draft = kept.root / "models/.sft.ab12cd_9.tmp"
    draft.mkdir()
    (draft / "weights").write_text("half")
    (kept.root / "models/.sft.mine.tmp").write_text("somebody's own")
    (scratch.parent / "trash/left").mkdir(parents=True)
    with held(scratch / "sft/live.lock", "a stage"):
        found = gc(yes=True, only="scratch")["scratch"]
    assert going(found, "folder") == {"scratch/sft/old", "scratch/gone/any"}
    assert going(found, "draft") == {"models/.sft.ab12cd_9.tmp"}
    names = {path.relative_to(scratch).as_posix() for path in scratch.glob("*/*")}
    assert names == {f"sft/{current}", f"sft/{current}.lock", "sft/live", "sft/live.lock"}
    assert not draft.exists()
    assert (kept.root / "models/.sft.mine.tmp").exists()
    assert not (scratch.parent / "trash").exists()


def test_scratch_of_a_stage_whose_inputs_will_change_is_not_judged(kept):
    """The stage's key is another only because main's data is not back yet: its checkpoints are good."""
    folder = kept.root / ".prefloop/scratch/sft" / stage_key("sft", {})
    folder.mkdir(parents=True)
    shutil.rmtree(kept.root / "data/raw")
    assert going(gc(only="scratch")["scratch"], "folder") == set()
    kept.values(7, 1)
    assert going(gc(only="scratch")["scratch"], "folder") == set()


@pytest.mark.parametrize("lock", ["workspace", "sft"])
def test_it_refuses_while_a_run_or_a_stage_is_live(kept, lock):
    with (
        held(kept.root / f".prefloop/locks/{lock}.lock", "a run"),
        pytest.raises(WorkspaceError) as refused,
    ):
        gc()
    assert refused.value.exit_code == 6
    assert str(os.getpid()) in str(refused.value)


def test_it_refuses_while_dvc_works_and_not_for_a_dvc_that_is_gone(kept, monkeypatch):
    noted = kept.root / ".dvc/tmp/rwlock"
    noted.write_text(json.dumps({"models/sft": {"write": {"pid": os.getpid(), "cmd": "dvc repro"}}}))
    with pytest.raises(WorkspaceError, match="DVC works in this workspace"):
        gc()
    monkeypatch.setattr(collect.psutil, "pid_exists", lambda pid: False)
    assert "cache" in gc(only="cache")


def test_old_logs_and_notes_of_delivered_runs_go_but_not_those_of_runs_that_lie_here(kept):
    state = kept.root / ".prefloop"
    for folder in ("logs", "crashes", "spool"):
        (state / folder).mkdir(exist_ok=True)
    (state / "logs/sft.log").write_text("old")
    (state / "crashes/new.txt").write_text("new")
    for run, note in (("run-sft-1-1", True), ("run-sft-2-2", True), ("run-gone", True), ("run-live", False)):
        (state / f"spool/{run}.state").write_text(json.dumps({"ended": note, "offset": 0}))
    past = time.time() - 40 * 86400
    for path in [state / "logs/sft.log", *(state / "spool").iterdir()]:
        os.utime(path, (past, past))
    found = gc(only="logs", older_than="30d", yes=True)["logs"]
    assert going(found, "log") == {"logs/sft.log"}
    assert going(found, "traceback") == set()
    assert going(found, "delivered") == {"spool/run-gone.state"}  # 2-2 made what a branch names
    assert not (state / "spool/run-gone.state").exists()
    assert (state / "crashes/new.txt").exists()


def test_what_tools_keep_goes_by_its_own_name(kept):
    (kept.root / ".pytest_cache").mkdir()
    (kept.root / ".pytest_cache/state").write_text("x")
    assert set(gc(only="tests", yes=True)) == {"tests"}
    assert not (kept.root / ".pytest_cache").exists()
    still_works(kept)


def test_options_that_say_nothing_are_refused():
    assert choose("runs, scratch") == (Category.SCRATCH, Category.RUNS)
    assert (seconds_of("12h"), seconds_of("1.5d"), seconds_of("0d")) == (43200, 129600, 0)
    for wrong in (lambda: choose("scrath"), lambda: seconds_of("a week")):
        with pytest.raises(ConfigError):
            wrong()
