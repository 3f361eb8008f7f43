"""`--set` and `--preset`: params.yaml changed in place, comments kept, nothing written that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flows.parameters import apply_changes, leaves, parse_assignment
from prefloop.errors import ConfigError

PARAMS = """\
# Every knob.
seed: 0                           # every random choice follows from it
sft:
  learning_rate: 1.0e-3           # peak
  epochs: 2
dpo:
  beta: 0.1
evaluate:
  policies: [base, sft]           # models
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/small.yaml").write_text("sft: {epochs: 1}\ndpo: {beta: 0.5}\n")
    (tmp_path / "presets/large.yaml").write_text("sft: {epochs: 9, batch_size: 64}\n")
    return tmp_path


def change(workspace: Path, *assignments: str, preset: str = "") -> list[str]:
    said: list[str] = []
    apply_changes(workspace, preset, assignments, ask=False, say=said.append)
    return said


def text(workspace: Path) -> str:
    return (workspace / "params.yaml").read_text()


def test_a_value_is_changed_and_all_else_stays_as_it_was(workspace: Path) -> None:
    assert change(workspace, "dpo.beta=0.3") == ["params.yaml: dpo.beta: 0.1 -> 0.3"]
    assert text(workspace) == PARAMS.replace("beta: 0.1", "beta: 0.3")


def test_the_same_value_writes_nothing(workspace: Path) -> None:
    assert change(workspace, "sft.learning_rate=0.001") == []
    assert text(workspace) == PARAMS


def test_1e_4_is_a_number(workspace: Path) -> None:
    change(workspace, "sft.learning_rate=1e-4")
    assert yaml.safe_load(text(workspace))["sft"]["learning_rate"] == 0.0001


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("sft.epoch=3", "did you mean sft.epochs?"),
        ("stf.epochs=3", "unknown key stf"),
        ("sft.epochs=many", "sft.epochs must be a whole number"),
        ("sft.epochs=0", "epochs must be at least 1"),
        ("sft.epochs", "no `key=value`"),
        ("evaluate.policies=[base]", "policies must hold sft"),
        ("dpo.beta=[", "the value is no YAML"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    workspace: Path, assignment: str, message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        change(workspace, "dpo.beta=0.4", assignment)
    assert message in str(raised.value)
    assert text(workspace) == PARAMS


def test_a_preset_takes_back_what_the_one_before_had_changed(workspace: Path) -> None:
    change(workspace, preset="small")
    assert yaml.safe_load(text(workspace))["sft"]["epochs"] == 1
    change(workspace, preset="large")
    values = yaml.safe_load(text(workspace))
    assert values["dpo"]["beta"] == 0.1
    assert values["sft"] == {"learning_rate": 0.001, "epochs": 9, "batch_size": 64}
    change(workspace, preset="small")
    assert yaml.safe_load(text(workspace))["sft"]["epochs"] == 1


def test_a_preset_leaves_alone_what_was_changed_since(workspace: Path) -> None:
    change(workspace, preset="small")
    change(workspace, "dpo.beta=0.7")
    change(workspace, preset="large")
    assert yaml.safe_load(text(workspace))["dpo"]["beta"] == 0.7


def test_an_unknown_preset_is_refused_with_the_nearest(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="there is no preset smal") as raised:
        change(workspace, preset="smal")
    assert "did you mean small?" in str(raised.value)


def test_assignments_hold_any_yaml() -> None:
    assert parse_assignment("evaluate.policies=[sft, ppo]") == ("evaluate.policies", ["sft", "ppo"])
    assert parse_assignment("base.model=Qwen/Qwen2.5-0.5B") == ("base.model", "Qwen/Qwen2.5-0.5B")
    assert parse_assignment("validate.tokenizer=a=b") == ("validate.tokenizer", "a=b")


def test_leaves_keep_lists_and_empty_mappings_whole() -> None:
    assert leaves({"a": {"b": [1, 2], "c": {}}, "d": None}) == {"a.b": [1, 2], "a.c": {}, "d": None}


def test_a_new_policy_is_evaluated_too(workspace: Path) -> None:
    with open(workspace / "params.yaml", "a") as handle:
        handle.write("policies:\n  dpo: {}\n")
    said = change(workspace, "policies.dpo.mild={beta: 0.9}")
    assert 'params.yaml: evaluate.policies: ["base", "sft"] -> ["base", "sft", "mild"]' in said
    values = yaml.safe_load(text(workspace))
    assert values["policies"] == {"dpo": {"mild": {"beta": 0.9}}}
    assert change(workspace, "policies.dpo.mild.beta=0.8") == [
        "params.yaml: policies.dpo.mild.beta: 0.9 -> 0.8"
    ]
