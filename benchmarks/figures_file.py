"""What a benchmark measured, in a file for other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from prefloop.files import write_json


def write_figures(path: Path, figures: Any) -> None:
    """Writes them as JSON that every reader takes, whole or not at all.

    Args:
        figures: what JSON can hold, and dataclasses. NaN and infinities become null.

    Raises:
        WorkspaceError: the file could not be written; what it held before is still there.
    """
    write_json(path, _plain(figures))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
