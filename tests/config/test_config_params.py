"""params.yaml holds every knob, and combinations that cannot work are refused before anything runs."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefloop.config.params import Params, load_params, parse_params
from prefloop.config.read import read_yaml
from prefloop.config.validate import DEFAULTS
from prefloop.errors import ConfigError


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of every leaf of a dataclass."""
    hints = typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint):
            yield from keys_of(typing.cast(type, hint), f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def leaves(values: dict[str, Any], known: set[str], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            yield from leaves(value, known, f"{name}.")
        else:
            yield name


@pytest.fixture
def values(repository: Path) -> dict[str, Any]:
    return copy.deepcopy(read_yaml(repository / "params.yaml"))


def test_params_yaml_is_valid(repository: Path) -> None:
    assert load_params(repository / "params.yaml").ppo.steps >= 1


def test_params_yaml_holds_every_knob(values: dict[str, Any]) -> None:
    known = set(keys_of(Params))
    assert set(leaves(values, known)) == known


def test_params_yaml_names_every_expectation(values: dict[str, Any]) -> None:
    assert set(values["validate"]["expectations"]) == set(DEFAULTS)


def test_every_line_of_params_yaml_is_short(repository: Path) -> None:
    lines = (repository / "params.yaml").read_text(encoding="utf-8").splitlines()
    assert max(map(len, lines)) <= 120


def test_yaml_readers_agree_about_params_yaml(repository: Path, values: dict[str, Any]) -> None:
    # DVC and `--set` read YAML 1.2, stages read YAML 1.1: no value may mean two things.
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load((repository / "params.yaml").read_text(encoding="utf-8")) == values


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("judge", {"kind": "reward_model"}, "ingest.judge_share is 0"),
        ("ingest", {"source": "files"}, "only ingest.source world has a gold judge"),
        ("ingest", {"source": "hub"}, "hub.name is empty"),
        ("ingest", {"fit_share": 0.8, "rl_share": 0.2}, "leaves no prompts for evaluation"),
        ("ppo", {"sampling": {"max_new_tokens": 128}}, "leaves no room for a prompt"),
        ("evaluate", {"sampling": {"max_new_tokens": 500}}, "leaves no room for a prompt"),
        ("ppo", {"sampling": {"top_p": 0.9}}, "sampling.top_p must be 1"),
        ("ppo", {"sampling": {"temperature": 0}}, "sampling.temperature must be more than 0"),
        ("ppo", {"batch_size": 250, "minibatches": 4}, "no multiple of minibatches"),
        ("ppo", {"steps": 0}, "steps must be at least 1"),
        ("sft", {"batch_size": 10, "micro_batch_size": 4}, "no multiple of micro_batch_size"),
        ("sft", {"train_on": "everything"}, "train_on must be completion or assistant"),
        ("sft", {"learning_rate": 0}, "learning_rate must be more than 0"),
        ("base", {"architecture": {"hidden_size": 130}}, "no multiple of heads"),
        ("base", {"architecture": {"kv_heads": 3}}, "no multiple of kv_heads"),
        ("dpo", {"beta": 0}, "beta must be more than 0"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing must lie between"),
        ("evaluate", {"policies": ["base", "ppo"]}, "policies must hold sft"),
        ("promote", {"max_refusal_drop": 2}, "max_refusal_drop must lie between"),
        ("validate", {"expectations": {"no_leek": {"severity": "warn"}}}, "unknown expectation no_leek"),
        ("validate", {"expectations": {"no_leak": {"severity": "quarantine"}}}, "is about no single row"),
        ("tracking", {"flush_seconds": 0}, "flush_seconds must be more than 0"),
        ("compute", {"threads": -1}, "threads must be at least 0"),
    ],
)
def test_impossible_combinations_are_refused(
    values: dict[str, Any], section: str, change: dict[str, Any], message: str
) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and section != "validate":
            values[section][key].update(value)
        else:
            values[section][key] = value
    with pytest.raises(ConfigError, match=message) as caught:
        parse_params(values)
    assert "params." not in caught.value.message


def test_an_unknown_section_names_the_nearest(values: dict[str, Any]) -> None:
    values["reword"] = values.pop("reward")
    with pytest.raises(ConfigError, match="unknown key reword") as caught:
        parse_params(values)
    assert caught.value.remedy == "did you mean reward?"
