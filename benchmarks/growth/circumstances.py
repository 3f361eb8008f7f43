"""Under what a figure was measured: machine, versions, date, load."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "prefect", "dvc", "mlflow")


def circumstances() -> dict[str, Any]:
    """Processor, cores, Python, packages, the day (UTC) and the load average of the last minute."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
        "load": load(),
    }


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 1)


def processor() -> str:
    """Its name, as Linux tells it; elsewhere the kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def in_words(found: dict[str, Any]) -> str:
    """One line of it."""
    packages = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
    return (
        f"{found['date']}, {found['processor']}, {found['cores']} cores, load {found['load']} to "
        f"{load()}; Python {found['python']}, {packages}"
    )
