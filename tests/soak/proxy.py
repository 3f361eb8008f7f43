"""A TCP proxy on loopback that loses connections, stalls them, cuts an upload or swallows an answer."""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field

CHUNK = 16384
POLL_SECONDS = 0.2
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of zero: closing sends a reset, as a firewall or a dying host does."""


@dataclass(frozen=True)
class Behaviour:
    """What happens to connections.

    Attributes:
        kind: pass | refuse (a reset at once, open connections too) | stall (bytes go nowhere) | truncate (a
            request with `marker` is cut after `after` of its bytes) | swallow (a request with `marker`
            arrives whole, its answer does not).
        marker: bytes in the head of a request.
        after: bytes of the request that still go through.
        times: how many requests it happens to.
    """

    kind: str = "pass"
    marker: bytes = b""
    after: int = 0
    times: int = 1


@dataclass
class Proxy:
    """Leads connections to `target`; open it with `with`.

    Attributes:
        target: port on loopback.
        port: where it listens itself.
        hits: requests to which a behaviour happened since it was set.
    """

    target: int
    port: int = 0
    hits: int = 0
    _behaviour: Behaviour = field(default_factory=Behaviour)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _open: set[socket.socket] = field(default_factory=set)
    _closing: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._listener.settimeout(POLL_SECONDS)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()
        self._cut_all()

    def set(self, behaviour: Behaviour | None = None) -> None:
        """From now on; without one, everything passes. A cut loses the connections that are open."""
        with self._lock:
            self._behaviour, self.hits = behaviour or Behaviour(), 0
        if behaviour is not None and behaviour.kind in ("refuse", "stall"):
            self._cut_all()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            client.settimeout(None)
            threading.Thread(target=self._serve, args=(client,), name="proxy", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        kind = self._behaviour.kind
        if kind == "refuse":
            _reset(client)
            return
        with self._lock:
            self._open.add(client)
        if kind == "stall":
            return  # held open, answered never, until the behaviour ends it
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=10)
        except OSError:
            self._drop(client)
            return
        server.settimeout(None)
        with self._lock:
            self._open.add(server)
        swallow = threading.Event()
        threading.Thread(
            target=self._answers, args=(server, client, swallow), name="proxy", daemon=True
        ).start()
        self._requests(client, server, swallow)

    def _requests(self, client: socket.socket, server: socket.socket, swallow: threading.Event) -> None:
        """From client to server; what the behaviour looks for stands at the beginning of what is sent."""
        left: int | None = None  # bytes that a cut upload has still to go
        with suppress(OSError):
            while data := client.recv(CHUNK):
                if left is None and (taken := self._taken(data)) is not None:
                    if taken.kind == "swallow":
                        swallow.set()
                    else:
                        left = taken.after
                if left is not None:
                    server.sendall(data[:left])
                    left -= len(data)
                    if left <= 0:
                        break
                else:
                    server.sendall(data)
        self._drop(client)
        self._drop(server)

    def _taken(self, data: bytes) -> Behaviour | None:
        with self._lock:
            now = self._behaviour
            if now.kind not in ("truncate", "swallow") or now.marker not in data or self.hits >= now.times:
                return None
            self.hits += 1
            return now

    def _answers(self, server: socket.socket, client: socket.socket, swallow: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(CHUNK):
                if swallow.is_set():
                    break  # what was asked for is done, and nobody hears of it
                client.sendall(data)
        self._drop(client)
        self._drop(server)

    def _drop(self, end: socket.socket) -> None:
        with self._lock:
            self._open.discard(end)
        _reset(end)

    def _cut_all(self) -> None:
        with self._lock:
            ends = list(self._open)
        for end in ends:
            self._drop(end)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        end.close()
