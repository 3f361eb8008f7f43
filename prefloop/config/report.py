"""The report."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least


@dataclass(frozen=True)
class ReportConfig:
    """Section `report`.

    Attributes:
        title: heading of the page.
        samples: prompts whose conversations are shown, good and bad ones (count).
    """

    title: str = "prefloop run"
    samples: int = 12

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 0)
