"""A server on loopback that nobody's page but its own may talk to.

Whatever page a browser shows may send requests to loopback. Three ways are shut: another site's page, whose
requests say where it is from (Origin; the answer's CORS headers alone do not stop a request that changes
something, nor a web socket); a page whose own name was made to lead to this machine afterwards (DNS
rebinding), whose requests come under that name (Host); and both together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

NAMES = ("127.0.0.1", "localhost")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class OwnPages:
    """An ASGI application that refuses requests of other sites' pages and under other names.

    Args:
        origins: of pages that may talk to it; `*` for all.
    """

    def __init__(self, application: Application, origins: Collection[str]) -> None:
        self._application = application
        self._origins = {origin.strip() for origin in origins}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._is_own(scope["headers"]):
            await self._application(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"not for pages of other sites\n"})

    def _is_own(self, headers: Collection[tuple[bytes, bytes]]) -> bool:
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        named = all(host.rpartition(":")[0] in NAMES or host in NAMES for host in hosts)
        return named and ("*" in self._origins or self._origins.issuperset(origins))
