"""Parameters of one run alone: params.yaml has them while the run lasts, and then what it had before.

A kill at any time leaves a note of what stood there before, which the next run in the workspace follows.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from flows.parameters import apply_changes
from flows.settings import STATE
from prefloop.errors import ConfigError
from prefloop.files import atomic_file, read_json, write_json

Number = bool | int | float
NOTE = STATE / "params-of-a-run.json"


@contextmanager
def parameters_for_a_run(
    root: Path, changes: Mapping[str, Number], say: Callable[[str], None]
) -> Iterator[None]:
    """Writes changes into params.yaml for the length of the block; hold nobody else's run meanwhile.

    Args:
        changes: dotted key -> number or truth value. No text: one could name a file or a server.

    Raises:
        ConfigError: an unknown key, or a value that does not fit; nothing is written.
    """
    put_back(root, say)
    if not changes:
        yield
        return
    path = root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    during = _changed(path, changes, say)
    write_json(root / NOTE, {"before": before, "during": during})
    _write(path, during)
    try:
        yield
    finally:
        put_back(root, say)


def put_back(root: Path, say: Callable[[str], None]) -> None:
    """Gives params.yaml what it held before the run that a note tells of; what somebody wrote since stays."""
    if not (root / NOTE).exists():
        return
    note, path = read_json(root / NOTE), root / "params.yaml"
    now = path.read_text(encoding="utf-8") if path.exists() else ""
    if now == note["during"]:
        _write(path, note["before"])
    elif now != note["before"]:
        kept = root / STATE / f"params-{datetime.now(UTC):%Y%m%dT%H%M%S}.yaml"
        _write(kept, note["before"])
        say(f"params.yaml was edited while a run had parameters of its own: it stays; before, it was {kept}")
    (root / NOTE).unlink()


def _changed(path: Path, changes: Mapping[str, Number], say: Callable[[str], None]) -> str:
    """The text of params.yaml with the changes, checked as a whole."""
    for key, value in changes.items():
        if not isinstance(value, Number):
            raise ConfigError(
                f"{key}: {value!r} is neither a number nor true or false",
                "write texts and lists into the workspace's params.yaml",
            )
    assignments = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        shutil.copy2(path, draft)
        apply_changes(Path(folder), "", assignments, ask=False, say=say)
        return draft.read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as handle:
        handle.write(text)
