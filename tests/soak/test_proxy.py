"""The proxy that stands for a network: what each behaviour does to a real HTTP server and its client."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.soak.proxy import Behaviour, Proxy


class Server(ThreadingHTTPServer):
    """Keeps the bytes that arrive, by request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived: list[int] = []
        self.ended = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        wanted = int(self.headers["Content-Length"])
        data = self.rfile.read(wanted)
        self.server.arrived.append(len(data))  # type: ignore[attr-defined]
        self.server.ended.set()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def put(proxy: Proxy, path: str, size: int = 100_000) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=2)
    try:
        connection.request("PUT", path, body=b"x" * size)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_everything_passes(server: Server) -> None:
    with Proxy(server.server_port) as proxy:
        assert put(proxy, "/model") == b"ok"
    assert server.arrived == [100_000]


@pytest.mark.parametrize("kind", ["refuse", "stall"])
def test_a_cut_network_answers_nobody_until_it_is_whole_again(server: Server, kind: str) -> None:
    with Proxy(server.server_port) as proxy:
        proxy.set(Behaviour(kind))
        with pytest.raises((OSError, http.client.HTTPException)):
            put(proxy, "/model", 10)
        assert server.arrived == []
        proxy.set()
        assert put(proxy, "/model") == b"ok"


def test_an_upload_is_cut_so_often_and_no_other_request_is(server: Server) -> None:
    with Proxy(server.server_port) as proxy:
        proxy.set(Behaviour("truncate", b"PUT /model", 20_000, times=1))
        assert put(proxy, "/other") == b"ok"
        with pytest.raises((OSError, http.client.HTTPException)):
            put(proxy, "/model")
        assert proxy.hits == 1
        assert put(proxy, "/model") == b"ok"
    assert sum(server.arrived) < 300_000


def test_a_swallowed_answer_leaves_what_was_asked_done(server: Server) -> None:
    with Proxy(server.server_port) as proxy:
        proxy.set(Behaviour("swallow", b"PUT /model", times=1))
        with pytest.raises((OSError, http.client.HTTPException)):
            put(proxy, "/model")
        assert server.ended.wait(5)
        assert server.arrived == [100_000]
        assert put(proxy, "/model") == b"ok"
