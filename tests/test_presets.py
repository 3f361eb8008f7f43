"""Each preset loads over params.yaml and is valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.config.params import METHODS, parse_params
from prefloop.config.policies import overlaid
from prefloop.config.read import read_yaml

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
HUB = {
    "qwen-0.5b-hh": "Qwen/Qwen2.5-0.5B",
    "llama-1b-ultrafeedback": "meta-llama/Llama-3.2-1B",
    "llama-8b-lora-ultrafeedback": "meta-llama/Llama-3.1-8B",
}


def with_preset(name: str) -> dict[str, Any]:
    return overlaid(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "presets" / f"{name}.yaml"))


def test_the_promised_presets_are_there() -> None:
    assert set(PRESETS) == {"small", "thorough", "methods", "hh-small", *HUB}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_valid(name: str) -> None:
    params = parse_params(with_preset(name))
    assert params.base.model == HUB.get(name, "")
    assert (params.judge.kind == "gold") == (params.ingest.source == "world")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_how_to_run_it(name: str) -> None:
    text = (ROOT / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"prefloop run --preset {name}" in text.split("\ningest:")[0]


@pytest.mark.parametrize("name", PRESETS)
def test_nothing_trains_on_longer_sequences_than_the_model_takes(name: str) -> None:
    params = parse_params(with_preset(name))
    if params.base.model:
        return
    for name in ("base", "sft", "reward", "judge", *METHODS):
        assert getattr(params, name).max_length <= params.base.architecture.context


def test_the_preset_methods_trains_every_method() -> None:
    assert set(parse_params(with_preset("methods")).policies) == set(METHODS)


@pytest.mark.parametrize("name", HUB)
def test_no_method_keeps_a_rate_of_the_embedded_model(name: str) -> None:
    ours, preset = read_yaml(ROOT / "params.yaml"), with_preset(name)
    for method in METHODS:
        assert preset[method]["learning_rate"] <= ours[method]["learning_rate"] / 3
        assert preset[method]["max_length"] >= 1024
