"""Reading one section of params.yaml, as a stage does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from prefloop.config.parse import parse
from prefloop.config.yaml_limits import check_nodes
from prefloop.errors import ConfigError

T = TypeVar("T")

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: it reads the same, eight times as fast."""


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ConfigError: missing file, broken YAML (line and column are named), or no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = _parsed(text, path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path} is missing", "run from the repository's root, or restore the file"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is broken YAML: {getattr(error, 'problem', error)}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a day that does not exist, endless digits, endless nesting
        raise ConfigError(f"{path} holds a value that cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections")
    return values


def read_section(name: str, cls: type[T], path: Path | str = "params.yaml") -> T:
    """Parses section `name` of a params file into the frozen dataclass `cls`."""
    return parse(cls, read_yaml(path).get(name), name)


def read_seed(path: Path | str = "params.yaml") -> int:
    """The run's seed: the top-level key `seed`."""
    seed = read_yaml(path).get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ConfigError(f"seed must be a whole number of at least 0, got {seed!r}")
    return seed


def parse_value(text: str, where: str) -> Any:
    """One YAML value from the command line.

    Raises:
        ConfigError: it is broken, names a Python object, or grows without end.
    """
    try:
        return _parsed(text, where)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: the value is no YAML", "quote texts that hold : or #") from error


def _parsed(text: str, where: Path | str) -> Any:
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        check_nodes(node, str(where))
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
