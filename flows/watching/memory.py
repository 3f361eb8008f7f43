"""What a watch knows from one process to the next: .prefloop/watch.json, written whole or not at all."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.settings import STATE
from prefloop.files import write_json

MEMORY = STATE / "watch.json"


@dataclass
class Memory:
    """What was dealt with. Losing it loses no data: what was imported is known by the versions' manifests.

    Attributes:
        data: hash of the data that the last good run began with; empty before the first.
        failed: data and parameters that a run failed on, with its exit code; empty when the last one did not.
        under_run: data/sources/ changed while a run may have read it, and no run since has read it anew.
        pointers: pointer under data/sources/ -> hash of its text, as last seen.
        hashes: file -> signature and hash, so that a start reads only what changed.
        bucket: object -> etag or what stands for it, of those that were fetched.
    """

    data: str = ""
    failed: dict[str, Any] = field(default_factory=dict)
    under_run: bool = False
    pointers: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, list[object]] = field(default_factory=dict)
    bucket: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> Memory:
        """What the last watch wrote; a new memory where there is none, or none that can be read."""
        try:
            values = json.loads((root / MEMORY).read_text(encoding="utf-8"))
            return cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
        except (OSError, ValueError, TypeError):
            return cls()

    def save(self, root: Path) -> None:
        """Writes it.

        Raises:
            WorkspaceError: the disk is full or the folder cannot be written.
        """
        write_json(root / MEMORY, asdict(self))
