"""Errors that speak to the user: what was wrong, where, and what to do about it."""

from __future__ import annotations


class PrefloopError(Exception):
    """Base of every error a user can cause or mend.

    Args:
        message: what was wrong, naming the file, row or key.
        remedy: what the user can do; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class ConfigError(PrefloopError):
    """A wrong or unknown key, type or combination in params.yaml, a preset or --set."""

    exit_code = 2


class DataError(PrefloopError):
    """A file or row that cannot be used."""

    exit_code = 3


class ModelError(PrefloopError):
    """A model folder, tokenizer or checkpoint that cannot be used."""

    exit_code = 4


class TrainingError(PrefloopError):
    """Training cannot go on: a NaN, no trainable token, a constant reward."""

    exit_code = 5


class WorkspaceError(PrefloopError):
    """The workspace cannot be used now: another run is live, the disk is full, a server is down."""

    exit_code = 6


class InfrastructureError(PrefloopError):
    """A machine, worker, server or storage failed, and not what it worked on: the same may succeed later."""

    exit_code = 7


class StopRequested(Exception):
    """Training stopped between two steps because the process was asked to end; a checkpoint was saved."""

    exit_code = 143
