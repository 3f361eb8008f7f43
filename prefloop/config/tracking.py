"""Where runs are recorded."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least


@dataclass(frozen=True)
class TrackingConfig:
    """Section `tracking`; no stage depends on it, so a change re-runs nothing.

    Attributes:
        uri: MLflow tracking URI; empty is the workspace's own database.
        experiment: MLflow experiment.
        flush_seconds: time between two deliveries of metrics (seconds).
    """

    uri: str = ""
    experiment: str = "prefloop"
    flush_seconds: float = 10.0

    def __post_init__(self) -> None:
        at_least("flush_seconds", self.flush_seconds, 0, strict=True)
