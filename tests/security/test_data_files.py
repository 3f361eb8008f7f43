"""Data files that mean harm: refused with their line, or inert; none ends an import with a fault of ours."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prefloop.config.ingest import HubConfig, IngestConfig
from prefloop.data import readers, unpacking
from prefloop.data.assembling import assemble
from prefloop.data.importing import convert_records, formats, import_files, import_text
from prefloop.data.readers import Broken, Record, read_records
from prefloop.data.sources import from_version
from prefloop.errors import DataError
from prefloop.files import read_jsonl

GOOD = '{"prompt": "q", "chosen": "a", "rejected": "b"}'


def imported(folder: Path, *files: Path, format: str = "native") -> list[dict[str, Any]]:
    """All rows of one import, read back as a stage reads them."""
    version = import_files(format, files, root=folder / "workspace")
    return [row for file in sorted(version.folder.glob("*.jsonl")) for row in read_jsonl(file)]


HOSTILE_LINES = {
    "nested deeper than the parser goes": ("[" * 100_000 + "]" * 100_000, "nested"),
    "nested deeper than any row is": ('{"prompt": ' + "[" * 200 + "1" + "]" * 200 + "}", "nested"),
    "not a number": ('{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}', "NaN"),
    "infinite": ('{"prompt": "q", "chosen": "a", "rejected": "b", "margin": -Infinity}', "Infinity"),
    "infinite by its exponent": (
        '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1e999}',
        "finite",
    ),
    "more digits than Python reads": ('{"prompt": "q", "margin": ' + "9" * 5000 + "}", "digits"),
    "more digits than a float has": ('{"prompt": "q", "margin": ' + "9" * 400 + "}", "64 bits"),
    "one key twice": (
        '{"prompt": "q", "chosen": "a", "rejected": "b", "chosen": "c"}',
        "'chosen' stands twice",
    ),
    "half a character": ('{"prompt": "\\ud800", "chosen": "a", "rejected": "b"}', "surrogate"),
    "half a character in a key": ('{"prompt": "q", "\\udfff": "a"}', "surrogate"),
    "no UTF-8": (b'{"prompt": "\xff"}', "UTF-8"),
    "NUL bytes": (b"\x00" * 64, "no JSON"),
    "an id that is a list": ('{"prompt": "q", "id": ["../x"]}', "id must be"),
}


@pytest.mark.parametrize("case", HOSTILE_LINES)
def test_a_hostile_line_becomes_a_row_with_its_reason_and_its_neighbours_stay(
    tmp_path: Path, case: str
) -> None:
    line, words = HOSTILE_LINES[case]
    file = tmp_path / "rows.jsonl"
    raw = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(GOOD.encode() + b"\n" + raw + b"\n" + GOOD.encode() + b"\n")
    first, second, third = imported(tmp_path, file)
    assert [first["chosen"], third["chosen"]] == ["a", "a"]
    assert words in second["invalid"]
    assert (second["source"], second["line"]) == ("rows.jsonl", 2)


@pytest.mark.parametrize("case", [case for case in HOSTILE_LINES if case not in ("no UTF-8", "NUL bytes")])
def test_the_same_in_an_array(tmp_path: Path, case: str) -> None:
    file = tmp_path / "rows.json"
    file.write_text(f"[{GOOD}, {HOSTILE_LINES[case][0]}]")
    first, second = imported(tmp_path, file)
    assert first["chosen"] == "a"
    assert second["line"] == 2
    assert second["invalid"]


def test_every_format_calls_hostile_records_unreadable(tmp_path: Path) -> None:
    values: list[Any] = [None, 7, "text", [], [[]], {}, {"prompt": None}, {"prompt": {"a": []}, "chosen": 3}]
    keys = ["prompt", "chosen", "rejected", "completions", "ranks", "completion", "label", "text", "messages"]
    keys += [
        "conversations",
        "question",
        "passages",
        "preference",
        "instruction",
        "input",
        "output",
        "answer",
    ]
    keys += ["instances", "replies", "message_tree", "rank", "a", "b", "winner", "role", "id", "score"]
    values += [
        dict.fromkeys(keys, value) for value in (None, 7, "x", [3], [None], [{}], {"x": []}, [[1], [2]])
    ]
    values += [{**values[-1], key: value} for key in keys for value in (None, 7, "x", [], [{}], {})]
    for format in formats():
        rows = list(convert_records(format, [Record(1, value) for value in values], "f", {}))
        assert len(rows) >= len(values), format
        json.dumps([row for _, row in rows], allow_nan=False).encode()


def test_ids_names_and_keys_that_look_like_paths_or_code_stay_text(tmp_path: Path) -> None:
    texts = [
        "../../../escape",
        "/etc/passwd",
        "$(touch escape)",
        "'; DROP TABLE runs; --",
        "{0.__class__}",
        "%s%n",
    ]
    texts += ["=cmd|'/C calc'!A0", "__proto__", "\x1b[2J", "a\x00b", "<script>alert(1)</script>"]
    file = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"{i} {t}", "chosen": t, "rejected": t + "!", "id": t, "rater": t, "policy": t, t: t}
        for i, t in enumerate(texts)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    version = import_files("native", [file], root=tmp_path / "w")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    raw = tmp_path / "w/data/raw"
    assemble([from_version(version)], IngestConfig(source="files", fit_share=0.9, rl_share=0.05), raw)
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.parent for path in made} == {raw}, "no row names a file"
    kept = [row for kind in ("preferences", "held_out") for row in read_jsonl(raw / f"{kind}.jsonl")]
    assert sorted(row["id"] for row in kept) == sorted(texts)
    assert all(row[row["id"]] == row["id"] for row in kept)


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gz", "zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_a_compressed_bomb_is_refused_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pack: Any
) -> None:
    monkeypatch.setattr(unpacking, "_UNPACKED_BYTES", 8 << 20)
    monkeypatch.setattr(readers, "_LONGEST_LINE", 1 << 20)
    file = tmp_path / (name + (".gz" if pack is gzip.compress else ".zst"))
    file.write_bytes(pack(b"[" + b" " * (24 << 20)))
    tracemalloc.start()
    *_, last = read_records(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(last.value, Broken) or "text" in last.value
    found = [record.value for record in read_records(file) if isinstance(record.value, Broken)]
    assert "unpacks to more than" in found[-1].reason
    assert peak < 12 << 20, "far less than the 24 MiB that it holds"


def test_a_bomb_of_many_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_UNPACKED_BYTES", 1 << 20)
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress((GOOD + "\n").encode() * 100_000))
    *rows, last = read_records(file)
    most = unpacking.allowed_bytes(file.stat().st_size) / len(GOOD + "\n")
    assert most - 25_000 < len(rows) <= most
    assert "unpacks to more than" in last.value.reason


def test_what_compresses_well_for_honest_reasons_is_read(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress((GOOD + "\n").encode() * 20_000))
    assert len(list(read_records(file))) == 20_000


def test_a_zst_frame_that_demands_gigabytes_of_window_is_damaged(tmp_path: Path) -> None:
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 0xA8]) + b"\x01\x00\x00" + b"x" * 64  # a window of 2 GiB
    (tmp_path / "a.jsonl.zst").write_bytes(frame)
    (found,) = read_records(tmp_path / "a.jsonl.zst")
    assert "damaged" in found.value.reason


def test_values_of_a_parquet_file_that_json_does_not_know(tmp_path: Path) -> None:
    row = {
        "prompt": "q", "chosen": "a", "rejected": "b", "seen": datetime.datetime(2024, 5, 1, 12),
        "day": datetime.date(2024, 5, 1), "price": decimal.Decimal("1.50"), "raw": b"plain",
        "missing": float("nan"),
    }  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row, {**row, "raw": b"\xff\x00"}]), tmp_path / "a.parquet")
    first, second = imported(tmp_path, tmp_path / "a.parquet")
    assert (first["seen"], first["day"], first["price"]) == ("2024-05-01T12:00:00", "2024-05-01", "1.50")
    assert (first["raw"], first["missing"]) == ("plain", None)
    assert "bytes" in second["invalid"]


def test_a_parquet_file_damaged_in_the_middle_says_so_after_its_rows(tmp_path: Path) -> None:
    table = pa.table({"text": [os.urandom(100).hex() for _ in range(4000)]})
    pq.write_table(
        table, tmp_path / "a.parquet", row_group_size=1000, compression="gzip", use_dictionary=False
    )
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = b"\xaa" * 4000
    (tmp_path / "a.parquet").write_bytes(data)
    *rows, last = read_records(tmp_path / "a.parquet")
    assert rows
    assert "damaged" in last.value.reason


def test_a_parquet_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_UNPACKED_BYTES", 8 << 20)
    pq.write_table(pa.table({"text": ["x" * 10_000] * 5_000}), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    *rows, last = read_records(tmp_path / "a.parquet")
    assert len(rows) < 1_000
    assert "unpacks to more than" in last.value.reason


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz", "a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize(
    "data", [b"\x7fELF" + bytes(100), b"PK\x03\x04" + bytes(100), b"PAR1" * 4, b"ARROW1\0\0"]
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError):
        list(read_records(tmp_path / name))


def test_one_column_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected,chosen\nq,good,bad,evil\n")
    with pytest.raises(DataError, match="'chosen' twice"):
        list(read_records(tmp_path / "a.csv"))


def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(DataError):
            list(read_records(tmp_path / name))


def test_a_link_out_of_its_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("a private key")
    download = tmp_path / "download"
    download.mkdir()
    (download / "notes.txt").symlink_to("../secret.txt")
    with pytest.raises(DataError, match=r"notes\.txt is a link to .*secret\.txt, outside its folder"):
        import_files("text", [download / "notes.txt"], root=tmp_path / "w")
    with pytest.raises(DataError, match="outside its folder"):
        import_text([str(download / "*.txt")], root=tmp_path / "w")
    assert not list((tmp_path / "w").rglob("*.jsonl"))


def test_links_as_the_hubs_cache_and_dvc_lay_them_out_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b" / "data"
    for folder in (blobs, snapshot):
        folder.mkdir(parents=True)
    (blobs / "f00d").write_text(GOOD)
    (snapshot / "a.jsonl").symlink_to("../../../blobs/f00d")
    (tmp_path / "b.jsonl").symlink_to("blobs/f00d")
    assert imported(tmp_path, snapshot / "a.jsonl", tmp_path / "b.jsonl")[0]["chosen"] == "a"


def test_a_file_name_that_is_no_text_is_named_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff\x1b[2J.jsonl")
    file.write_text(GOOD)
    (row,) = imported(tmp_path, file)
    assert row["source"].isprintable()


@pytest.mark.parametrize(
    "name", ["../../etc", "/etc", "~/x", "a/b/c", "https://host/x", "a/../b", "-x/y", "a b"]
)
def test_a_data_set_of_the_hub_is_named_as_the_hub_names_them(name: str) -> None:
    with pytest.raises(ValueError, match=r"hub\.name"):
        IngestConfig(source="hub", hub=HubConfig(name=name))


def test_a_version_that_somebody_tampered_with_is_named_with_its_line(tmp_path: Path) -> None:
    for bad in (b"\xff\xfe{}", b"[" * 100_000, b'{"prompt": ' + b"9" * 5000 + b"}"):
        file = tmp_path / "rows.jsonl"
        file.write_bytes(GOOD.encode() + b"\n" + bad + b"\n")
        with pytest.raises(DataError, match="line 2"):
            list(read_jsonl(file))
