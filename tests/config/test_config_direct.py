"""Sections of the methods that learn from preferences: defaults of their papers, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest

from prefloop.config.dpo import DPOConfig
from prefloop.config.kto import KTOConfig
from prefloop.config.orpo import ORPOConfig
from prefloop.config.parse import parse
from prefloop.config.simpo import SimPOConfig
from prefloop.errors import ConfigError


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (DPOConfig, {"beta": 0}, "beta must be more than 0"),
        (DPOConfig, {"label_smoothing": 0.5, "loss": "robust"}, "label_smoothing must lie between"),
        (DPOConfig, {"label_smoothing": 0.1, "loss": "ipo"}, "the loss ipo has none: set it to 0"),
        (DPOConfig, {"label_smoothing": 0.1, "loss": "hinge"}, "the loss hinge has none"),
        (DPOConfig, {"ipo_logprobs": "mean"}, "loss is sigmoid: set loss to ipo"),
        (DPOConfig, {"nll_coef": -1}, "nll_coef must be at least 0"),
        (DPOConfig, {"holdout": 0.6}, "holdout must lie between"),
        (DPOConfig, {"pairs_per_prompt": -1}, "pairs_per_prompt must be at least 0"),
        (KTOConfig, {"beta": 0}, "beta must be more than 0"),
        (KTOConfig, {"desirable_weight": 0}, "desirable_weight must be more than 0"),
        (KTOConfig, {"undesirable_weight": -1}, "undesirable_weight must be more than 0"),
        (KTOConfig, {"batch_size": 1}, "batch_size must be at least 2"),
        (ORPOConfig, {"odds_coef": 0}, "odds_coef must be more than 0"),
        (SimPOConfig, {"beta": 0}, "beta must be more than 0"),
        (SimPOConfig, {"margin": -0.1}, "margin must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(cls, values, "section")


def test_an_unknown_loss_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(DPOConfig, {"loss": "sigmoide"}, "dpo")
    assert caught.value.remedy == "did you mean sigmoid?"


def test_robust_without_flips_is_allowed() -> None:
    assert DPOConfig(loss="robust").label_smoothing == 0
    assert DPOConfig(loss="robust", label_smoothing=0.2).label_smoothing == 0.2


def test_defaults_are_those_of_the_papers() -> None:
    kto, orpo, simpo = KTOConfig(), ORPOConfig(), SimPOConfig()
    assert (kto.beta, kto.desirable_weight, kto.undesirable_weight) == (0.1, 1.0, 1.0)
    assert (orpo.odds_coef, orpo.start) == (0.1, "base")
    assert (simpo.beta, simpo.margin) == (2.0, 1.0)
    assert DPOConfig() == DPOConfig(loss="sigmoid", beta=0.1, label_smoothing=0.0, nll_coef=0.0)
