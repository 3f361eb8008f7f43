"""Files as people have them: compressed, damaged, in other encodings."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prefloop.data.readers import Broken, read_records
from prefloop.errors import DataError

ROWS: list[dict[str, Any]] = [{"n": 1, "text": "eins"}, {"n": 2, "text": "zwölf\n"}, {"n": 3, "text": "三"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def values(path: Path) -> list[Any]:
    return [record.value for record in read_records(path)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz"])
@pytest.mark.parametrize("array", [False, True])
def test_json_in_every_wrapping(tmp_path: Path, name: str, array: bool) -> None:
    if array and ".jsonl" in name:
        pytest.skip("JSON Lines hold no array")
    data = json.dumps(ROWS, indent=1).encode() if array else LINES
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rsplit(".", 1)[1], bytes)
    (tmp_path / name).write_bytes(pack(data))
    assert values(tmp_path / name) == ROWS


def test_a_zst_file_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES) + zstandard.compress(LINES))
    assert values(tmp_path / "a.jsonl.zst") == ROWS * 2


def test_an_array_larger_than_the_window(tmp_path: Path) -> None:
    rows = [{"n": i, "text": "x" * 1000} for i in range(3000)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert values(tmp_path / "a.json") == rows


def test_a_truncated_array_says_so_after_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"n": 1}, {"n": 2}')
    *rows, last = values(tmp_path / "a.json")
    assert rows == [{"n": 1}, {"n": 2}]
    assert "truncated" in last.reason


def test_a_row_that_is_no_json_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n\n{"n": 2\n{"n": 3}\n')
    records = list(read_records(tmp_path / "a.jsonl"))
    assert [record.line for record in records] == [1, 3, 4]
    assert isinstance(records[1].value, Broken)
    assert records[1].value.excerpt == '{"n": 2'


def test_a_line_in_another_encoding_is_broken_and_its_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 1}\n{"t": "caf\xe9"}\n{"n": 3}\n')
    first, second, third = values(tmp_path / "a.jsonl")
    assert (first, third) == ({"n": 1}, {"n": 3})
    assert "not UTF-8" in second.reason
    assert "0xe9" in second.reason


def test_a_truncated_gz_gives_what_it_has_and_then_says_so(tmp_path: Path) -> None:
    many = b"".join(json.dumps({"n": i, "x": hash(str(i))}).encode() + b"\n" for i in range(20000))
    packed = gzip.compress(many)
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found = values(tmp_path / "a.jsonl.gz")
    assert 0 < len(found) < 20001
    assert found[:3] == [json.loads(line) for line in many.splitlines()[:3]]
    assert "truncated" in found[-1].reason
    assert sum(isinstance(value, Broken) for value in found) <= 2


def test_csv_with_quotes_line_breaks_and_a_short_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufeffq,a\n"one, two","three\nfour"\nonly\nfive,six\n', encoding="utf-8")
    records = list(read_records(tmp_path / "a.csv"))
    assert records[0].value == {"q": "one, two", "a": "three\nfour"}
    assert (records[1].line, records[2].line) == (4, 5)
    assert "2 columns, this row 1" in records[1].value.reason
    assert records[2].value == {"q": "five", "a": "six"}


def test_csv_rows_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"q,a\n1,2\ncaf\xe9,3\n4,5\n")
    found = values(tmp_path / "a.csv")
    assert [value for value in found if not isinstance(value, Broken)] == [
        {"q": "1", "a": "2"},
        {"q": "4", "a": "5"},
    ]
    assert sum(isinstance(value, Broken) for value in found) == 1


def test_parquet_and_plain_text(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    assert values(tmp_path / "a.parquet") == ROWS
    assert values(tmp_path / "a.txt") == [{"text": "one\ntwo\n"}]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", None, "is missing"),
        ("a.jsonl", b"", "is empty"),
        ("a.xlsx", b"PK", "does not say what the file is"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("a.jsonl.gz", b"{}", "not compressed"),
        ("a.parquet", b"PAR0 nothing", "no Parquet"),
    ],
)
def test_files_that_cannot_be_read_at_all(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words):
        values(tmp_path / name)
