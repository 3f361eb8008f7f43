"""What the processes around a warm start tell each other: JSON and open files over a socket."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

LENGTH = struct.Struct("!Q")


def listen(address: str) -> socket.socket:
    """A socket that others find by a path."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(16)
    return listener


def send(connection: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """Sends a message, and open files with it."""
    content = json.dumps(message).encode()
    socket.send_fds(connection, [LENGTH.pack(len(content))], list(descriptors))
    connection.sendall(content)


def receive(connection: socket.socket, files: int) -> tuple[dict[str, Any], list[int]]:
    """A message, and at most so many open files with it.

    Raises:
        ConnectionError: the other side is gone.
    """
    head, descriptors, _, _ = socket.recv_fds(connection, LENGTH.size, files)
    if len(head) < LENGTH.size:
        raise ConnectionError("no message")
    content = bytearray()
    while len(content) < LENGTH.unpack(head)[0]:
        part = connection.recv(LENGTH.unpack(head)[0] - len(content))
        if not part:
            raise ConnectionError("half a message")
        content += part
    return json.loads(content), list(descriptors)
