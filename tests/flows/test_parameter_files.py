"""Parameter files are parsed once while they stand unchanged, and a reader may change what it was given."""

from __future__ import annotations

import os
from unittest import mock

import pytest
from dvc.dependency import param
from dvc.fs import LocalFileSystem
from dvc.utils.serialize import load_path

from flows import parameter_files


@pytest.fixture
def parses():
    """Calls of DVC's own parser; nothing is known at first."""
    with (
        mock.patch.object(parameter_files, "_parse", side_effect=load_path) as found,
        mock.patch.object(parameter_files, "_parsed", {}),
        mock.patch.object(param, "load_path", param.load_path),
    ):
        parameter_files.parse_once()
        yield found


@pytest.mark.parametrize(
    ("name", "text"), [("params.yaml", "a: {b: 1.0e-4, c: [1, 2]}\n"), ("code.json", '{"a": {"b": 1.0e-4}}')]
)
def test_a_file_is_parsed_once_for_all_its_readers(tmp_path, parses, name, text):
    path = tmp_path / name
    path.write_text(text)
    files = LocalFileSystem()
    found = [param.read_param_file(files, str(path), ["a.b"], flatten=True) for _ in range(5)]
    assert found == [{"a.b": 1e-4}] * 5
    assert param.read_param_file(files, str(path)) == load_path(str(path), files)
    assert parses.call_count == 1


def test_a_change_is_seen(tmp_path, parses):
    path = tmp_path / "params.yaml"
    path.write_text("a: 1\n")
    files = LocalFileSystem()
    assert param.load_path(str(path), files) == {"a": 1}
    path.write_text("a: 2\n")
    before = os.stat(path).st_mtime_ns
    os.utime(path, ns=(before + 1, before + 1))
    assert param.load_path(str(path), files) == {"a": 2}
    assert parses.call_count == 2


def test_what_a_reader_changes_stays_its_own(tmp_path, parses):
    path = tmp_path / "params.yaml"
    path.write_text("a: {b: [1]}\n")
    files = LocalFileSystem()
    param.load_path(str(path), files)["a"]["b"].append(2)
    assert param.load_path(str(path), files) == {"a": {"b": [1]}}


def test_another_file_system_is_asked_each_time(tmp_path, parses):
    other = mock.Mock()
    parses.side_effect = [{"a": 1}, {"a": 2}]
    assert [param.load_path("params.yaml", other) for _ in range(2)] == [{"a": 1}, {"a": 2}]
