"""Every command of benchmarks/ can be started: what it imports is there."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

NO_COMMAND = {"figures_file", "workspaces"}
COMMANDS = {path.stem for path in Path(__file__).parents[2].glob("benchmarks/*.py")} - NO_COMMAND


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_finds_what_it_imports(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)
