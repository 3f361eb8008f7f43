"""Versions under data/sources/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefloop.data.importing import import_files, import_text, versions
from prefloop.errors import DataError


def write(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


def test_a_version_holds_rows_and_where_each_came_from(tmp_path: Path) -> None:
    file = write(
        tmp_path / "in" / "a.jsonl", PAIR, "{broken\n", {"prompt": "q"}, {"prompt": "r", "chosen": 1}
    )
    version = import_files("trl", [file], {}, tmp_path)
    assert (version.name, version.rows, version.invalid) == ("001-trl", {"preferences": 1, "prompts": 1}, 2)
    good, broken, wrong = rows_of(version.folder / "preferences.jsonl")
    assert (good["source"], good["line"]) == ("a.jsonl", 1)
    assert good["id"]
    assert (broken["line"], broken["raw"]) == (2, "{broken")
    assert "no JSON" in str(broken["invalid"])
    assert "rejected is missing" in str(wrong["invalid"])
    manifest = json.loads((version.folder / "manifest.json").read_text())
    assert manifest["files"][0]["name"] == "a.jsonl"
    assert manifest["invalid"] == 2


def test_equal_content_is_imported_once_under_whatever_name(tmp_path: Path) -> None:
    first = import_files("trl", [write(tmp_path / "a.jsonl", PAIR)], {}, tmp_path)
    again = import_files("trl", [write(tmp_path / "b.jsonl", PAIR)], {}, tmp_path)
    other = import_files("trl", [write(tmp_path / "c.jsonl", {**PAIR, "prompt": "q"})], {}, tmp_path)
    assert (first.created, again.created, again.name) == (True, False, "001-trl")
    assert (other.created, other.name) == (True, "002-trl")
    assert [version.name for version in versions(tmp_path)] == ["001-trl", "002-trl"]


def test_the_same_file_under_other_options_is_another_version(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "p"})
    assert import_files("native", [file], {}, tmp_path).rows == {"prompts": 1}
    assert import_files("native", [file], {"kind": "evaluation"}, tmp_path).rows == {"evaluation": 1}


def test_nothing_is_written_when_a_file_cannot_be_read(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", PAIR)
    with pytest.raises(DataError, match="missing"):
        import_files("trl", [good, tmp_path / "nowhere.jsonl"], {}, tmp_path)
    with pytest.raises(
        DataError, match=r"none of 1 records could be read as hh-rlhf; the first: a\.jsonl, line 1"
    ):
        import_files("hh-rlhf", [good], {}, tmp_path)
    assert versions(tmp_path) == []
    assert not list((tmp_path / "data/sources").glob("*"))


def test_a_version_that_is_not_checked_out_is_named_and_its_number_kept(tmp_path: Path) -> None:
    write(tmp_path / "data/sources/001-trl.dvc", "outs: []\n")
    with pytest.raises(DataError, match=r"dvc pull data/sources/001-trl\.dvc"):
        versions(tmp_path)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    files = [write(tmp_path / part / "a.jsonl", {**PAIR, "prompt": part}) for part in ("x", "y")]
    version = import_files("trl", files, {}, tmp_path)
    assert [row["source"] for row in rows_of(version.folder / "preferences.jsonl")] == [
        "x/a.jsonl",
        "y/a.jsonl",
    ]


def test_text_patterns_make_versions_when_they_match(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text("Once upon a time.")
    (version,) = import_text(["books/*.txt", "nothing/*.txt"], tmp_path)
    assert version.rows == {"text": 1}
    assert not import_text(["books/*.txt"], tmp_path)[0].created
