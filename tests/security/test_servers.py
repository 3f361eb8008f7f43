"""Servers that `make ui` starts are told to listen on loopback alone."""

from __future__ import annotations

from flows.ui import mlflow_server, prefect_server


def test_every_command_names_loopback() -> None:
    for server in (mlflow_server("sqlite:///x.db", 5000), prefect_server(4200)):
        words = server.command
        assert words[words.index("--host") + 1] == "127.0.0.1"
        assert server.address.startswith("http://127.0.0.1:")
