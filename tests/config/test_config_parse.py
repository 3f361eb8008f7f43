"""Wrong configuration is refused with the key, what it got, and the nearest right one."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, field
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prefloop.config.dpo import DPOConfig
from prefloop.config.parse import parse
from prefloop.config.ppo import PPOConfig
from prefloop.config.read import read_section, read_seed, read_yaml
from prefloop.config.reward import RewardConfig
from prefloop.config.sft import SFTConfig
from prefloop.config.training import TrainingConfig
from prefloop.errors import ConfigError


@dataclass(frozen=True)
class Inner:
    width: int = 1


@dataclass(frozen=True)
class Outer:
    rate: float = 0.5
    count: int = 2
    on: bool = False
    name: str = ""
    mode: Literal["fast", "slow"] = "fast"
    sizes: list[int] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    named: dict[str, Inner] = field(default_factory=dict)
    limit: float | None = None


def test_an_empty_section_takes_every_default() -> None:
    assert parse(Outer, None, "outer") == Outer()
    assert parse(Outer, {}, "outer") == Outer()


def test_nested_values_are_followed() -> None:
    values = {"inner": {"width": 3}, "named": {"a": {"width": 4}}, "sizes": [1, 2], "limit": None}
    assert parse(Outer, values, "outer") == Outer(inner=Inner(3), named={"a": Inner(4)}, sizes=[1, 2])


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001"])
def test_a_small_number_is_a_number_however_yaml_reads_it(text: str) -> None:
    # PyYAML follows YAML 1.1, in which 1e-4 is text.
    values = yaml.safe_load(f"learning_rate: {text}")
    assert parse(TrainingConfig, values, "sft").learning_rate == pytest.approx(1e-4, rel=1e-12)


def test_a_whole_number_written_as_a_float_is_a_whole_number() -> None:
    assert parse(Outer, {"count": 3.0}, "outer").count == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": "fast"}, "outer.rate must be a number, got 'fast' (str)"),
        ({"rate": True}, "outer.rate must be a number, got True (bool)"),
        ({"rate": None}, "outer.rate must be a number, got None (NoneType)"),
        ({"count": 2.5}, "outer.count must be a whole number, got 2.5 (float)"),
        ({"count": "2"}, "outer.count must be a whole number, got '2' (str)"),
        ({"on": "yes"}, "outer.on must be true or false, got 'yes' (str)"),
        ({"name": 7}, "outer.name must be text, got 7 (int)"),
        ({"sizes": 3}, "outer.sizes must be a list, got 3 (int)"),
        ({"sizes": [1, "x"]}, "outer.sizes[1] must be a whole number, got 'x' (str)"),
        ({"named": []}, "outer.named must be a mapping, got [] (list)"),
        ({"inner": 3}, "outer.inner must be a mapping of keys, got 3 (int)"),
        ({"named": {"a": {"width": "x"}}}, "outer.named.a.width must be a whole number, got 'x' (str)"),
        ({"limit": "x"}, "outer.limit must be a number, got 'x' (str)"),
    ],
)
def test_a_wrong_type_names_the_key_and_what_it_got(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, values, "outer")
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("cls", "values", "where", "unknown", "nearest"),
    [
        (SFTConfig, {"learning_rat": 1}, "sft", "sft.learning_rat", "sft.learning_rate"),
        (PPOConfig, {"kl_coeff": 0.1}, "ppo", "ppo.kl_coeff", "ppo.kl_coef"),
        (
            PPOConfig,
            {"sampling": {"temprature": 1}},
            "ppo",
            "ppo.sampling.temprature",
            "ppo.sampling.temperature",
        ),
        (DPOConfig, {"lora": {"r": 1, "rnk": 8}}, "dpo", "dpo.lora.r", None),
    ],
)
def test_an_unknown_key_names_the_nearest(
    cls: type, values: dict[str, Any], where: str, unknown: str, nearest: str | None
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(cls, values, where)
    assert caught.value.message == f"unknown key {unknown}"
    if nearest:
        assert caught.value.remedy == f"did you mean {nearest}?"
    else:
        assert caught.value.remedy.startswith("known keys: ")
        assert "rank" in caught.value.remedy


def test_a_wrong_choice_names_the_nearest_or_all() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"mode": "slwo"}, "outer")
    assert caught.value.remedy == "did you mean slow?"
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"mode": "zzz"}, "outer")
    assert caught.value.remedy == "one of: fast, slow"


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainingConfig().learning_rate = 1.0  # type: ignore[misc]


@given(st.floats(min_value=1e-12, max_value=10.0))
def test_every_positive_rate_survives_yaml(rate: float) -> None:
    values = yaml.safe_load(yaml.safe_dump({"learning_rate": rate}))
    assert parse(TrainingConfig, values, "sft").learning_rate == rate


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20))
def test_no_unknown_key_passes(key: str) -> None:
    if key in Outer.__dataclass_fields__:
        return
    with pytest.raises(ConfigError, match="unknown key"):
        parse(Outer, {key: 1}, "outer")


def test_broken_yaml_names_line_and_column(tmp_path: Any) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("sft:\n  epochs: 1\n bad: 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml, line 3, column \d+ is broken YAML"):
        read_yaml(path)


def test_a_missing_file_an_encoding_and_a_list_are_named(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        read_yaml(tmp_path / "absent.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("title: Käse".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_yaml(latin)
    listed = tmp_path / "list.yaml"
    listed.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        read_yaml(listed)


def test_a_stage_reads_its_own_section_alone(tmp_path: Any) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: 3\nsft: {epochs: 2}\nppo: {nonsense: 1}\n", encoding="utf-8")
    assert read_section("sft", SFTConfig, path).epochs == 2
    assert read_seed(path) == 3


@pytest.mark.parametrize("seed", ["-1", "true", "x", "1.5"])
def test_a_seed_is_a_whole_number(tmp_path: Any, seed: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"seed: {seed}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="seed must be a whole number"):
        read_seed(path)


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Any) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("seed: 0\nppo:\n  steps: 1\n  sampling: {temperature: 1.0, temperature: 0.5}\n")
    with pytest.raises(ConfigError, match=r"line 4: the key 'temperature' stands twice"):
        read_yaml(file)


def test_a_bare_on_or_off_is_the_word() -> None:
    for text, meant in (("off", "off"), ('"off"', "off"), ("on", "on"), ("auto", "auto")):
        values = yaml.safe_load(f"share_prompt: {text}")
        assert parse(RewardConfig, values, "reward").share_prompt == meant
    with pytest.raises(ConfigError, match=r"ppo\.kl_control is False"):
        parse(PPOConfig, {"kl_control": False, "steps": 1}, "ppo")
