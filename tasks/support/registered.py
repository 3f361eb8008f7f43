"""Reading the registry: which version is of which stage key. Where there is none yet, none is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.support.mlflow_store import Store, reached, read_config, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Registered:
    """One version of a registered model.

    Attributes:
        key, stage: of the run that made it.
        aliases: "champion", say.
    """

    name: str
    version: str
    key: str
    stage: str
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join([f"{self.name}/{self.version}", *(f"@{alias}" for alias in self.aliases)])


def find_version(name: str, *, version: str = "", alias: str = "") -> Registered | None:
    """One version by its number or alias; None where the registry has none.

    Raises:
        StoreAway: the registry cannot be asked now.
    """
    from mlflow.exceptions import MlflowException

    with _store() as store:
        if store is None:
            return None
        client = store.client
        try:
            if alias:
                version = client.get_model_version_by_alias(name, alias).version
            return _plain(client.get_model_version(name, str(version)))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def all_versions() -> list[Registered]:
    """Every version of every model that carries a stage key, oldest first.

    Raises:
        StoreAway: the registry cannot be asked now.
    """
    with _store() as store:
        if store is None:
            return []
        found = []
        for model in _pages(store):
            # Searches leave aliases out.
            found += [_plain(store.client.get_model_version(model.name, model.version))]
    return sorted((one for one in found if one.key), key=lambda one: (one.name, int(one.version)))


def _pages(store: Store) -> Iterator[ModelVersion]:
    token = None
    while True:
        page = store.client.search_model_versions(max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def _store() -> Iterator[Store | None]:
    """The store; None where it would be a database that nothing was written to."""
    config = read_config()
    uri = tracking_uri(config)
    if uri.startswith(_SQLITE) and not Path(uri.removeprefix(_SQLITE)).exists():
        yield None
        return
    with reached(config) as store:
        yield store


def _plain(version: ModelVersion) -> Registered:
    from tasks.support.model_delivery import KEY_TAG

    tags = version.tags
    return Registered(
        version.name,
        str(version.version),
        tags.get(KEY_TAG, ""),
        tags.get("prefloop.stage", ""),
        tuple(sorted(map(str, version.aliases))),
    )
