"""Code on its way to a worker: the working tree as it is, whole or refused."""

from __future__ import annotations

import pytest

from flows.storage import Storage
from flows.workers.code import fetch_code, has_commit, publish_code
from prefloop.errors import WorkspaceError


def test_a_worker_gets_the_working_tree_as_it_is_and_git_stays_as_it_was(project, tmp_path):
    project.edit("tasks/sft.py", "1", "2")
    (project.root / "tasks/new.py").write_text("NEW = True\n")
    before = project.shell("git", "status", "--porcelain")
    storage = Storage(str(tmp_path / "shared"))
    commit = publish_code(project.root, storage)
    assert project.shell("git", "status", "--porcelain") == before
    clone = tmp_path / "clone"
    fetch_code(clone, storage, commit)
    assert (clone / "tasks/sft.py").read_text().startswith("LEARNING = 2\n")
    assert (clone / "tasks/new.py").exists()
    assert publish_code(project.root, storage) == commit, "the same tree is the same commit"
    project.edit("tasks/new.py", "True", "False")
    second = publish_code(project.root, storage)
    (clone / "left.txt").write_text("of an earlier stage")
    fetch_code(clone, storage, second)
    assert (clone / "tasks/new.py").read_text() == "NEW = False\n"
    assert not (clone / "left.txt").exists()
    log = project.shell("git", "-C", str(clone), "log", "--format=%H")
    assert log.split() == [second], "no history comes along"


def test_a_pack_that_was_cut_short_is_refused_and_published_anew_by_the_next_run(project, tmp_path):
    storage = Storage(str(tmp_path / "shared"))
    commit = publish_code(project.root, storage)
    pack = tmp_path / f"shared/code/{commit}.pack"
    pack.write_bytes(pack.read_bytes()[:-30])
    clone = tmp_path / "clone"
    with pytest.raises(WorkspaceError, match=f"commit {commit} in .*shared is damaged"):
        fetch_code(clone, storage, commit)
    assert not has_commit(clone, commit)
    publish_code(project.root, storage)
    fetch_code(clone, storage, commit)
    assert (clone / "dvc.yaml").exists()


def test_a_pack_with_another_commit_than_its_name_says_is_refused(project, tmp_path):
    storage = Storage(str(tmp_path / "shared"))
    commit = publish_code(project.root, storage)
    other = commit.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    (tmp_path / f"shared/code/{commit}.pack").rename(tmp_path / f"shared/code/{other}.pack")
    with pytest.raises(WorkspaceError, match="is damaged"):
        fetch_code(tmp_path / "clone", storage, other)


def test_code_that_nobody_published_is_asked_for(tmp_path):
    storage = Storage(str(tmp_path))
    with pytest.raises(WorkspaceError, match=r"has no commit 0123456789(.|\n)*publishes its code anew"):
        fetch_code(tmp_path / "clone", storage, "0123456789" * 4)
