"""One training of prefloop's, as both its own code and the peer's job describe it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.alongside.material import Material
from benchmarks.alongside.table import Row


@dataclass(frozen=True)
class Side:
    """A row with all that it needs.

    Attributes:
        scratch: a folder of its own.
        section: the whole section of prefloop's configuration.
        precision: "fp32" or "bf16". device: "cpu" or "cuda".
    """

    row: Row
    material: Material
    scratch: Path
    section: dict[str, Any]
    precision: str = "fp32"
    device: str = "cpu"
