"""GPUs of a work pool, as a concurrency limit of Prefect's: a slot a GPU.

`python -m flows.workers.limits gpu=4 big=8` makes or changes them, as infra/setup.sh does; so does a run
whose params.yaml says how many a pool has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefloop.errors import ConfigError, PrefloopError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def limit_name(pool: str) -> str:
    """Name of the limit of a pool's GPUs."""
    return f"prefloop-gpu-{pool}"


def set_limit(client: SyncPrefectClient, pool: str, gpus: int) -> None:
    """Makes the limit of a pool, or changes it where it differs."""
    client.upsert_global_concurrency_limit_by_name(limit_name(pool), gpus)


def limit_of(client: SyncPrefectClient, pool: str) -> int | None:
    """GPUs of a pool (count); None where nobody said how many it has."""
    from prefect.exceptions import ObjectNotFound

    try:
        found = client.read_global_concurrency_limit_by_name(limit_name(pool))
    except ObjectNotFound:
        return None
    return int(found.limit) if found.active else None


def main(arguments: Sequence[str]) -> None:
    """Sets the limits that `POOL=GPUS` words name.

    Raises:
        ConfigError: a word of another form.
    """
    from prefect.client.orchestration import get_client

    wanted: dict[str, int] = {}
    for word in arguments:
        pool, equals, number = word.partition("=")
        if not (pool and equals and number.isdigit() and int(number)):
            raise ConfigError(f"{word!r} does not say how many GPUs a pool has", "for example gpu=4")
        wanted[pool] = int(number)
    with get_client(sync_client=True) as client:
        for pool, count in wanted.items():
            set_limit(client, pool, count)
            print(f"{limit_name(pool)}: {count}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PrefloopError as error:
        print(f"flows.workers.limits: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
