"""A Prefect server that is away for a while is waited for: what workers do goes on without it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

from flows.supervision import Stopped
from prefloop.errors import InfrastructureError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POLL_SECONDS = 1.0
BUSY = (408, 429)
"""Statuses, besides those from 500 on, that a server answers with while it cannot do what it is asked."""

T = TypeVar("T")


class PatientClient:
    """Asks Prefect's server, and asks again while it does not answer.

    What is asked has to be safe to ask twice: the server may have done it before it went away.

    Args:
        seconds: how long an absence may last.
        stopped: says that the run was asked to end, and nothing is waited for any more.
        say: is told when it goes away and when it is back.

    Attributes:
        absences: times that it was away (count).
    """

    def __init__(self, seconds: float, stopped: Callable[[], bool], say: Callable[[str], None]) -> None:
        self.absences = 0
        self._seconds, self._stopped, self._say = seconds, stopped, say
        self._mine = threading.local()  # a connection a thread

    def __call__(self, ask: Callable[[SyncPrefectClient], T]) -> T:
        """What `ask` returns.

        Raises:
            InfrastructureError: the server was away for longer than that.
            Stopped: the run was asked to end while it was away.
        """
        from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        deadline = 0.0
        while True:
            try:
                # Prefect's own retries would keep a run that was asked to end waiting for a minute.
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                    answer = ask(self._connected())
            except Exception as error:
                if not is_absence(error):
                    raise
                self._disconnect()
                now = time.monotonic()
                if not deadline:
                    deadline = now + self._seconds
                    self.absences += 1
                    self._say(
                        f"the Prefect server does not answer: waiting up to {self._seconds:.0f} s for it"
                    )
                if self._stopped():
                    raise Stopped("waiting for the Prefect server") from error
                if now > deadline:
                    raise InfrastructureError(
                        f"the Prefect server did not answer for {self._seconds:.0f} s: {error}",
                        "start it again, and run again: a stage that a worker still runs is joined",
                    ) from error
                time.sleep(POLL_SECONDS)
            else:
                if deadline:
                    self._say("the Prefect server answers again")
                return answer

    def _connected(self) -> SyncPrefectClient:
        from prefect.client.orchestration import get_client

        if not hasattr(self._mine, "client"):
            client = get_client(sync_client=True)
            self._mine.client = client.__enter__()
        return cast("SyncPrefectClient", self._mine.client)

    def _disconnect(self) -> None:
        if hasattr(self._mine, "client"):
            self._mine.client.__exit__(None, None, None)
            del self._mine.client


def is_absence(error: BaseException) -> bool:
    """True for a server that cannot be reached, or says itself that it cannot answer now."""
    import httpx

    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code in BUSY
    return isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError))
