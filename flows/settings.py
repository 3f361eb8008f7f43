"""The one place that sets how tools behave inside a workspace: telemetry off, state under .prefloop/."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

STATE = Path(".prefloop")
SKIPPED = "Skipped"
"""State of a deployment's flow run that had nothing to do; Prefect's event of its end has that name."""

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def prefect_settings(root: Path) -> dict[str, str]:
    """Prefect's settings in a workspace; what the user's environment says goes first."""
    return {
        "PREFECT_HOME": str((root / STATE / "prefect").absolute()),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # the terminal shows the stages
        "PREFECT_LOGGING_HANDLERS_DEBUG_LEVEL": "CRITICAL",
        "PREFECT_CLI_COLORS": "false",
    }


def apply(root: Path) -> None:
    """Sets this process's environment, which its children inherit; before Prefect is imported."""
    for name, value in {**TELEMETRY_OFF, **prefect_settings(root)}.items():
        os.environ.setdefault(name, value)


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a stage: this interpreter comes first on PATH, output is not held back."""
    here, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    return {
        **os.environ,
        **TELEMETRY_OFF,
        "PATH": path if path.split(os.pathsep)[0] == here else os.pathsep.join([here, path]),
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",  # stages have a progress line of their own
        **(extra or {}),
    }
