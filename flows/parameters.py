"""`--preset` and `--set`: params.yaml is changed in place, comments kept, after the difference was shown."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from flows.settings import STATE
from prefloop.config.params import parse_params
from prefloop.config.parse import nearest
from prefloop.config.policies import policies_in
from prefloop.config.read import parse_value, read_yaml
from prefloop.errors import ConfigError
from prefloop.files import atomic_file, write_json

Changes = dict[str, Any]
"""Dotted key -> new value."""


def apply_changes(
    root: Path, preset: str, assignments: Sequence[str], *, ask: bool, say: Callable[[str], None]
) -> None:
    """Writes a preset and single parameters into params.yaml.

    A preset holds what differs from the values that params.yaml comes with, so the keys of the preset
    that was applied before go back to what they were, unless somebody changed them since.

    Args:
        assignments: `section.key=value` each, the value as YAML.
        ask: wait for a yes before writing.

    Raises:
        ConfigError: unknown preset or key, or values that do not fit; nothing is written.
    """
    if not preset and not assignments:
        return
    given = dict(parse_assignment(text) for text in assignments)
    path = root / "params.yaml"
    read_yaml(path)  # what grows without end is refused before it is parsed with its comments
    yaml = _yaml()
    document = yaml.load(path.read_text(encoding="utf-8"))
    before = leaves(document)
    changes: Changes = {}
    remembered: dict[str, Any] = {}
    if preset:
        changes = _revert_previous(root, before)
        wanted = leaves(load_preset(root, preset))
        changes |= wanted
        values = before | changes
        remembered = {
            "name": preset,
            "keys": {key: [_earlier(root, key, before), values[key]] for key in wanted},
        }
    changes |= given
    changes |= _evaluate_new_policies(document, changes)
    changes = {key: value for key, value in changes.items() if before.get(key, _ABSENT) != value}
    for key, value in changes.items():
        set_key(document, key, value)
    parse_params(_plain(document))
    if changes:
        for key, value in changes.items():
            say(f"params.yaml: {key}: {_shown(before.get(key, _ABSENT))} -> {_shown(value)}")
        if ask and input("write this? [Y/n] ").strip().lower() not in ("", "y", "yes"):
            raise ConfigError("params.yaml was left as it is", "run again without --preset and --set")
        with atomic_file(path) as handle:
            yaml.dump(document, handle)
    if preset:
        write_json(_memory(root), remembered)


def load_preset(root: Path, name: str) -> dict[str, Any]:
    """The keys of presets/NAME.yaml.

    Raises:
        ConfigError: there is no such preset.
    """
    path = root / "presets" / f"{name}.yaml"
    if Path(name).name != name or not path.exists():
        raise ConfigError(
            f"there is no preset {name}", nearest(name, [p.stem for p in (root / "presets").glob("*.yaml")])
        )
    return read_yaml(path)


def parse_assignment(text: str) -> tuple[str, Any]:
    """`sft.epochs=2` as key and value.

    Raises:
        ConfigError: no `=`, or a value that is no YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}: no `key=value`", "for example --set ppo.kl_coef=0.1")
    return key.strip(), _number(parse_value(value, f"--set {text[:_SHOWN]}"))


def set_parameter(path: Path, dotted: str, value: Any) -> None:
    """Sets one key of a params file, comments kept."""
    yaml = _yaml()
    document = yaml.load(path.read_text(encoding="utf-8"))
    set_key(document, dotted, value)
    with atomic_file(path) as handle:
        yaml.dump(document, handle)


def set_key(document: CommentedMap, dotted: str, value: Any) -> None:
    """Sets one key of a nested mapping, making the mappings on the way."""
    *sections, last = dotted.split(".")
    for section in sections:
        if not isinstance(document.get(section), Mapping):
            document[section] = CommentedMap()
        document = document[section]
    document[last] = value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Changes:
    """Nested mappings as dotted keys."""
    flat: Changes = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= leaves(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


_ABSENT = object()
_SHOWN = 200


def _evaluate_new_policies(document: CommentedMap, changes: Changes) -> Changes:
    """A policy that the changes bring in is evaluated too, unless they say what is."""
    evaluated = [str(name) for name in (document.get("evaluate") or {}).get("policies") or []]
    if "evaluate.policies" in changes or not evaluated:
        return {}
    after = copy.deepcopy(document)
    for key, value in changes.items():
        set_key(after, key, value)
    new = [name for _, name in policies_in(after) if name not in evaluated]
    return {"evaluate.policies": [*evaluated, *new]} if new else {}


def _revert_previous(root: Path, before: Changes) -> Changes:
    """What the previous preset changed, back to what it was."""
    if not _memory(root).exists():
        return {}
    keys = json.loads(_memory(root).read_text(encoding="utf-8"))["keys"]
    return {key: old for key, (old, new) in keys.items() if old is not None and before.get(key) == new}


def _earlier(root: Path, key: str, before: Changes) -> Any:
    """What a key held before any preset."""
    if _memory(root).exists():
        old, new = json.loads(_memory(root).read_text(encoding="utf-8"))["keys"].get(key, [None, _ABSENT])
        if before.get(key) == new:
            return old
    return before.get(key)


def _memory(root: Path) -> Path:
    return root / STATE / "preset.json"


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _plain(value: Any) -> Any:
    """ruamel's commented values as plain ones."""
    stream = io.StringIO()
    _yaml().dump({"value": value}, stream)
    return YAML(typ="safe").load(stream.getvalue())["value"]


def _number(value: Any) -> Any:
    """`1e-4`, which YAML reads as text, as the number that everybody means."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _shown(value: Any) -> str:
    return "(absent)" if value is _ABSENT else json.dumps(value)
