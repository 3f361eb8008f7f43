"""A stage's code is its own: an edit to another method's configuration trains nothing again."""

from __future__ import annotations

import pytest

from tasks.support.closure import Tree
from tests.infra.conftest import REPOSITORY


@pytest.mark.parametrize(("stage", "foreign"), [("sft", "kto"), ("reward", "ppo"), ("dpo", "grpo")])
def test_a_stage_does_not_depend_on_another_method_s_configuration(stage, foreign):
    files = set(map(str, Tree(REPOSITORY).closure(f"tasks.{stage}")))
    assert f"prefloop/config/{stage}.py" in files
    assert not files & {f"prefloop/config/{foreign}.py", "prefloop/config/params.py"}
