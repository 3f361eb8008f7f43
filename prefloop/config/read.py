"""Reading one section of params.yaml, as a stage does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml

from prefloop.config.parse import parse
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


def _parsed(text: str, path: Path) -> Any:
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        _refuse_repeated_keys(node, path)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_repeated_keys(node: Any, path: Path) -> None:
    """Refuses a mapping that holds a key twice, of which YAML would keep the last without a word."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ConfigError(
                    f"{path}, line {line}: the key {key.value!r} stands twice", "remove one of them"
                )
            seen.add(str(key.value))
            _refuse_repeated_keys(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(item, path)
