"""Stages that improve the SFT policy on its own completions write a model and their figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from prefloop.config.compute import ComputeConfig
from prefloop.config.scoring import ScoringConfig
from prefloop.files import read_json, read_jsonl, write_json, write_jsonl
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import RewardSum
from prefloop.training.environment import resolve
from tasks.support.policy_fitting import reward_sum
from tests import tiny
from tests.training.trainings import DEMONSTRATIONS, PROMPTS

SECTION = {
    "steps": 2,
    "batch_size": 4,
    "max_length": 48,
    "sampling": {"max_new_tokens": 8},
    "overlong_penalty": 0.5,
    "learning_rate": 1e-2,
}
LOOKS = {"select_every": 1, "select_prompts": 4, "ptx_coef": 0.1}
SECTIONS = {
    "ppo": LOOKS,
    "grpo": {**LOOKS, "group_size": 2},
    "rloo": {**LOOKS, "group_size": 2, "lora": {"rank": 2}},
    "reinforce": LOOKS,
    "online_dpo": LOOKS,
    "rejection": {"group_size": 2},
}


@pytest.fixture
def workspace(stage_folder: Path) -> Path:
    """Small models, prompts and demonstrations where the stages look for them."""
    params = {
        "seed": 0,
        "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
        "policies": {name: {name: {}} for name in SECTIONS},
        **{name: {**SECTION, **own} for name, own in SECTIONS.items()},
    }
    (stage_folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    tiny.saved(stage_folder / "models" / "sft")
    RewardModel.create(stage_folder / "models" / "sft", seed=1).save(stage_folder / "models" / "reward")
    (stage_folder / "data" / "validated").mkdir(parents=True)
    write_jsonl(stage_folder / "data" / "validated" / "prompts.jsonl", PROMPTS)
    write_jsonl(stage_folder / "data" / "validated" / "demonstrations.jsonl", DEMONSTRATIONS)
    environment = resolve(ComputeConfig(device="cpu", precision="fp32", threads=1))
    write_json(stage_folder / "runs" / "environment.json", environment.to_dict())
    return stage_folder


@pytest.mark.parametrize("stage", SECTIONS)
def test_a_stage_writes_its_model_and_figures(stage: str, workspace: Path) -> None:
    importlib.import_module(f"tasks.{stage}").main()
    before = load_file(workspace / "models" / "sft" / "model.safetensors")
    after = load_file(workspace / "models" / stage / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not bool((before[name] == after[name]).all()) for name in before)
    figures = read_json(workspace / "metrics" / "policies" / f"{stage}.json")
    if stage == "rejection":
        assert (figures["prompts"], figures["held_out"]) == (18, 6)
        assert figures["rounds"]["1"]["kl_bound"] > 0
    else:
        assert (figures["prompts"], figures["held_out"]) == (20, 4)
        assert figures["chosen_step"] in (1, 2)
        assert figures["score"] == pytest.approx(figures["score"])
    rows = list(read_jsonl(workspace / "reports" / "looks" / f"{stage}.jsonl"))
    assert [row["step"] for row in rows] == [1] * figures["held_out"] + [2] * figures["held_out"]
    curve = (workspace / "plots" / f"{stage}.csv").read_text(encoding="utf-8").splitlines()
    assert len(curve) == 3
    assert json.loads((workspace / "runs" / f"{stage}.json").read_text())["stage"] == f"{stage}@{stage}"


def test_the_sources_are_those_the_section_asks_for(tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0)

    def sources(**values: object) -> RewardSum:
        return reward_sum(ScoringConfig(**values), model)  # type: ignore[arg-type]

    assert list(sources().sources) == ["reward_model", "missing_eos"]
    assert sources().unended is None
    fixed = sources(missing_eos="score", missing_eos_score=-3.0, overlong_penalty=0.5)
    assert list(fixed.sources) == ["reward_model", "overlong"]
    assert fixed.unended == -3.0
    assert fixed.sources["overlong"][0] == 0.5
