"""Expectations by name, with what they are held to."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from prefloop.config.parse import parse
from prefloop.config.validate import DEFAULTS, Expectation, ValidateConfig
from prefloop.errors import ConfigError


def parsed(text: str) -> ValidateConfig:
    values: dict[str, Any] = {"expectations": yaml.safe_load(text)}
    return parse(ValidateConfig, values, "validate")


def test_what_is_left_out_keeps_its_default() -> None:
    config = parsed("length: {threshold: 100}\nno_secrets: {severity: error}")
    assert config.expectation("length") == Expectation("quarantine", 100)
    assert config.expectation("no_secrets") == Expectation("error", 0)
    assert config.expectation("encoding") == DEFAULTS["encoding"]


def test_a_bare_off_is_off() -> None:
    assert parsed("no_personal_data: {severity: off}").expectation("no_personal_data").severity == "off"
    assert parsed("no_personal_data: {severity: 'off'}").expectation("no_personal_data").severity == "off"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no_secret: {severity: warn}", "did you mean no_secrets"),
        ("length: {severity: wran}", "did you mean warn"),
        ("length: {treshold: 3}", "did you mean validate.expectations.length.threshold"),
        ("length: {threshold: -1}", "at least 0"),
        ("no_near_duplicate: {threshold: 90}", "is a share, at most 1"),
        ("usable_rows: {severity: quarantine}", "no single row"),
    ],
)
def test_wrong_settings_are_refused_with_the_right_ones(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parsed(text)
