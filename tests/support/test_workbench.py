"""What a training stage computes with."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefloop.config.compute import ComputeConfig
from prefloop.config.parse import parse
from prefloop.config.sft import SFTConfig
from prefloop.errors import ConfigError
from prefloop.training.environment import resolve
from tasks.support import training


@pytest.mark.parametrize("machine", ["fp32", "bf16"])
@pytest.mark.parametrize("own", ["", "fp32", "bf16"])
def test_a_stages_own_precision_goes_before_the_machines(
    machine: str, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[Any] = []
    monkeypatch.setattr(training, "apply", lambda *given: applied.append(given))
    monkeypatch.setattr(training, "read_section", lambda *_: ComputeConfig())
    monkeypatch.setattr(training, "shared", lambda environment, _: nullcontext(environment))
    held: list[Any] = []
    environment = dataclasses.replace(resolve(ComputeConfig()), precision=machine)
    stage: Any = SimpleNamespace(
        compute=environment,
        config=SFTConfig(precision=own, threads=3),
        scratch=tmp_path,
        hold=lambda context: held.append(context.enter_result),
    )
    expected = dataclasses.replace(environment, precision=own or machine)
    assert training.prepare(stage).environment == expected
    assert applied == [(expected, 3)]
    assert held == [expected]


def test_another_precision_is_refused() -> None:
    with pytest.raises(ConfigError, match="precision"):
        parse(SFTConfig, {"precision": "fp16"}, "sft")
