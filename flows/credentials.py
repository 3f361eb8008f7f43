"""Names of the environment's variables that hold credentials, by what they open."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

ORDERS: Final = (
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_CLIENT_CUSTOM_HEADERS",
    "PREFECT_API_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL",
    "PREFECT_SERVER_DATABASE_PASSWORD",
)
"""Variables that let their holder command a Prefect server, and so its workers: no stage needs them."""
HUB: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Of the model hub: for stages that load from it."""
STORES: Final = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_SECRET",
)
"""Of tracking and its artifacts: for a stage that delivers what it logs itself. DVC has them in any case."""
ALL: Final = (*ORDERS, *HUB, *STORES)


def without(variables: MutableMapping[str, str], names: tuple[str, ...] = ORDERS) -> None:
    """Removes variables from an environment."""
    for name in names:
        variables.pop(name, None)
