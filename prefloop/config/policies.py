"""The policies that a run trains: named entries of `policies`, each over its method's section."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefloop.config.parse import nearest, parse
from prefloop.config.read import read_yaml
from prefloop.errors import ConfigError

T = TypeVar("T")

SECTION = "policies"
RESERVED = ("environment", "ingest", "base", "sft", "reward", "judge", "looks", "report", "promote")
"""Names of other stages, whose files stand beside a policy's."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# File names that begin like this belong to the stages evaluate@... and validate@...
_TAKEN = ("evaluate-", "validate-")


def read_policy(method: str, name: str, cls: type[T], path: Path | str = "params.yaml") -> T:
    """The knobs of policy `name`: those of section `method`, overlaid by its entry in `policies`.

    Raises:
        ConfigError: see `policy_values` and `prefloop.config.parse.parse`.
    """
    return parse(cls, policy_values(read_yaml(path), method, name), f"{SECTION}.{method}.{name}")


def policy_values(params: Mapping[str, Any], method: str, name: str) -> dict[str, Any]:
    """The same, not yet checked against the section's type.

    Raises:
        ConfigError: there is no such entry, or it names another method than the one it stands under.
    """
    entries = (params.get(SECTION) or {}).get(method) or {}
    if name not in entries:
        raise ConfigError(
            f"{SECTION}.{method} has no policy {name}",
            nearest(name, entries) if entries else f"add it to params.yaml: {SECTION}.{method}.{name}: {{}}",
        )
    entry = dict(entries[name] or {})
    stated = entry.pop("method", method)
    if stated != method:
        raise ConfigError(
            f"{SECTION}.{method}.{name} says method: {stated}", f"move it to {SECTION}.{stated}.{name}"
        )
    return overlaid(params.get(method) or {}, entry)


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the keys of `over` in place of its own; mappings in both are overlaid in turn."""
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = overlaid(result[key], value) if both else value
    return result


def policies_in(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(method, name) of every policy that params.yaml lists, in its order."""
    for method, entries in (params.get(SECTION) or {}).items():
        for name in entries or {}:
            yield str(method), str(name)


def check_name(where: str, name: str) -> None:
    """Raises ConfigError for a name that would be more than a word in a command, or more than a folder."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: {name!r} is no name for a folder", "use letters, digits, - and _")


def check_names(params: Mapping[str, Any]) -> None:
    """Checks every name that dvc.yaml writes into a command: policies, and what is evaluated.

    Raises:
        ConfigError: a name that is more than a word.
    """
    for method, name in policies_in(params):
        check_name(f"{SECTION}.{method}.{name}", name)
    for name in (params.get("evaluate") or {}).get("policies") or []:
        check_name("evaluate.policies", str(name))


def check_policies(params: Mapping[str, Any], methods: Mapping[str, type[Any]]) -> None:
    """Checks every entry, and that what is trained is what is evaluated.

    Args:
        params: the whole of params.yaml. methods: method -> type of its section.

    Raises:
        ConfigError: an unknown method, a name that is taken or no file name, an unknown or wrong knob, a
            trained policy that `evaluate.policies` leaves out, or one there that nothing trains.
    """
    trained: dict[str, str] = {}
    for method, name in policies_in(params):
        where = f"{SECTION}.{method}.{name}"
        if method not in methods:
            raise ConfigError(f"unknown method {SECTION}.{method}", nearest(method, methods, SECTION))
        check_name(where, name)
        if name in RESERVED or name.startswith(_TAKEN):
            raise ConfigError(f"{where}: the name {name} is taken by another stage", "choose another one")
        if name in trained:
            raise ConfigError(f"{where}: {SECTION}.{trained[name]} has a policy of that name", "rename one")
        trained[name] = method
        parse(methods[method], policy_values(params, method, name), where)
    evaluated = (params.get("evaluate") or {}).get("policies")
    if evaluated is None or SECTION not in params:
        return
    for name in trained:
        if name not in evaluated:
            raise ConfigError(
                f"{SECTION}.{trained[name]}.{name} is trained, but evaluate.policies leaves it out",
                f"add {name} to evaluate.policies, or take it out of {SECTION}",
            )
    for name in evaluated:
        if name not in trained and name not in ("base", "sft"):
            raise ConfigError(
                f"evaluate.policies names {name}, which nothing trains",
                nearest(str(name), {"base", "sft", *trained}),
            )
