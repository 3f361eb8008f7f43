"""Named policies: a method's section with an entry laid over it, checked where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prefloop.config.params import METHODS
from prefloop.config.policies import check_policies, overlaid, policies_in, read_policy
from prefloop.config.ppo import PPOConfig
from prefloop.errors import ConfigError

PPO = {"steps": 3, "kl_coef": 0.1, "sampling": {"max_new_tokens": 8, "temperature": 0.7}}


def params(policies: Any, evaluated: list[str] | None = None) -> dict[str, Any]:
    values: dict[str, Any] = {"ppo": PPO, "dpo": {}, "policies": policies}
    return values if evaluated is None else values | {"evaluate": {"policies": evaluated}}


def test_an_entry_is_laid_over_its_methods_section(tmp_path: Path) -> None:
    entry = {"method": "ppo", "kl_coef": 0.02, "sampling": {"temperature": 0.9}}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params({"ppo": {"ppo": {}, "loose": entry}})))
    assert read_policy("ppo", "ppo", PPOConfig, path).kl_coef == 0.1
    loose = read_policy("ppo", "loose", PPOConfig, path)
    assert (loose.kl_coef, loose.steps) == (0.02, 3)
    assert (loose.sampling.temperature, loose.sampling.max_new_tokens) == (0.9, 8)
    with pytest.raises(ConfigError, match=r"policies\.ppo has no policy lose") as caught:
        read_policy("ppo", "lose", PPOConfig, path)
    assert "loose" in caught.value.remedy


def test_what_lies_under_is_left_as_it_was() -> None:
    under = {"a": {"b": 1, "c": 2}}
    assert overlaid(under, {"a": {"b": 9}, "d": 0}) == {"a": {"b": 9, "c": 2}, "d": 0}
    assert under == {"a": {"b": 1, "c": 2}}


def test_names_come_in_the_order_of_the_file() -> None:
    listed = params({"dpo": {"b": {}, "a": {}}, "ppo": {"c": {}}})
    assert list(policies_in(listed)) == [("dpo", "b"), ("dpo", "a"), ("ppo", "c")]


@pytest.mark.parametrize(
    ("policies", "evaluated", "message", "remedy"),
    [
        ({"pop": {"x": {}}}, None, "unknown method policies.pop", "policies.ppo"),
        (
            {"ppo": {"x": {"kl_coeff": 1}}},
            None,
            "unknown key policies.ppo.x.kl_coeff",
            "policies.ppo.x.kl_coef",
        ),
        ({"ppo": {"x": {"steps": 0}}}, None, "policies.ppo.x: steps must be at least 1", ""),
        ({"ppo": {"x": {"method": "dpo"}}}, None, "policies.ppo.x says method: dpo", "policies.dpo.x"),
        ({"ppo": {"sft": {}}}, None, "the name sft is taken", "another"),
        ({"ppo": {"evaluate-x": {}}}, None, "the name evaluate-x is taken", "another"),
        ({"ppo": {"a/b": {}}}, None, "no name for a folder", "letters"),
        ({"ppo": {"x": {}}, "dpo": {"x": {}}}, None, "policies.ppo has a policy of that name", "rename"),
        ({"ppo": {"x": {}}}, ["sft"], "policies.ppo.x is trained, but evaluate.policies", "add x"),
        ({"ppo": {"x": {}}}, ["sft", "x", "y"], "names y, which nothing trains", "sft"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(
    policies: Any, evaluated: list[str] | None, message: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_policies(params(policies, evaluated), METHODS)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
