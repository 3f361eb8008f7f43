"""Model cards: data, parameters, metrics and limits, and nothing that differs between equal runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from prefloop.config.sft import SFTConfig
from prefloop.config.training import LoraConfig
from tasks.support.training import card


def stage(**changes: Any) -> Any:
    return SimpleNamespace(name="sft", seed=3, config=SFTConfig(**changes))


def test_a_card_names_data_parameters_metrics_and_limits() -> None:
    config = {"learning_rate": 2e-5, "packing": True, "lora": LoraConfig(rank=8)}
    about = card(stage(**config), "A model.", ["2 rows", "3 more"], {"loss": 1.23456789, "at": {"n": 12}})
    assert list(about) == ["What it is", "Data", "Parameters", "Metrics", "Made by", "Limits"]
    assert about["Data"] == "- 2 rows\n- 3 more"
    lines = about["Parameters"].splitlines()
    assert lines[:2] == ["| parameter | value |", "| --- | --- |"]
    for line in ("| `learning_rate` | 2e-05 |", "| `packing` | true |", "| `lora.rank` | 8 |"):
        assert line in lines
    assert '| `schedule` | "linear" |' in lines
    assert about["Metrics"].splitlines()[2:] == ["| `loss` | 1.235 |", "| `at.n` | 12 |"]
    assert about["Made by"].endswith("stage `sft`, seed 3")
    assert about == card(stage(**config), "A model.", ["2 rows", "3 more"], {"loss": 1.2346, "at": {"n": 12}})


def test_a_model_that_was_not_trained_here_has_no_parameters() -> None:
    assert list(card(stage(), "`some/model`", [])) == ["What it is", "Data", "Made by", "Limits"]
