"""`prefloop data`, as a person calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PAIRS = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "q", "chosen"\n'


def prefloop(repository: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path.insert(0, {str(repository)!r}); from flows.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "data", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_formats_are_listed_and_errors_have_their_codes(repository: Path, tmp_path: Path) -> None:
    listed = prefloop(repository, tmp_path, "formats", "--json")
    assert "hh-rlhf" in json.loads(listed.stdout)
    missing = prefloop(repository, tmp_path, "import", "trl", "nowhere.jsonl")
    assert missing.returncode == 3
    assert "nowhere.jsonl is missing" in missing.stderr
    wrong = prefloop(repository, tmp_path, "import", "trl", "nowhere.jsonl", "--option", "prompt")
    assert wrong.returncode == 2
    assert prefloop(repository, tmp_path, "list").stdout.startswith("nothing imported yet")


@pytest.mark.slow
def test_an_import_is_tracked_once(repository: Path, tmp_path: Path) -> None:
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / "pairs.jsonl").write_text(PAIRS)
    first = prefloop(repository, tmp_path, "import", "trl", "pairs.jsonl")
    assert first.returncode == 0, first.stderr
    assert "001-trl: 1 preferences, 1 unreadable" in first.stdout
    assert (tmp_path / "data/sources/001-trl.dvc").exists()
    again = prefloop(repository, tmp_path, "import", "trl", "pairs.jsonl", "--json")
    assert json.loads(again.stdout)["created"] is False
    assert [row["name"] for row in json.loads(prefloop(repository, tmp_path, "list", "--json").stdout)] == [
        "001-trl"
    ]
