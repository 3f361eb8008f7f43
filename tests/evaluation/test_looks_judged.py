"""Looks judged: where a trail begins, how far from SFT it leads, and what the stage makes of the files."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from prefloop.config.compute import ComputeConfig
from prefloop.config.evaluate import EvaluateConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.errors import DataError
from prefloop.evaluation.answering import Setting
from prefloop.evaluation.answers import Answers, EvaluationPrompt
from prefloop.evaluation.looks import FromSFT, look_figures, read_trail, trail_figures
from prefloop.files import read_json, write_json, write_jsonl
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.training.environment import resolve
from prefloop.training.looks import Looks
from prefloop.world.build import evaluation
from prefloop.world.facts import World
from tests import tiny

ENVIRONMENT = resolve(ComputeConfig(device="cpu", precision="fp32", threads=1))
SETTING = Setting(EvaluateConfig(batch_size=3), ENVIRONMENT, seed=0)
ROWS = [{"id": f"q{i}", "prompt": question} for i, question in enumerate(tiny.QUESTIONS)]
PROMPTS = {row["id"]: EvaluationPrompt.from_row(row) for row in ROWS}
SAMPLING = SamplingConfig(max_new_tokens=6)


def looked_at(seed: int, rows: list[dict], steps: tuple[int, ...] = (1, 2)) -> list[dict]:
    """What a policy of random weights leaves behind."""
    tokens = tiny.tokenizer()
    looks = Looks(tiny.model(tokens, seed=seed), tokens, rows, SAMPLING, len(steps), seed=0)
    for step in steps:
        looks.look(step)
    return looks.rows


@pytest.fixture
def sft(tmp_path: Path) -> FromSFT:
    tokens = tiny.tokenizer()
    save_model(tiny.model(tokens, seed=0), tokens, tmp_path / "sft")
    return FromSFT(*load_policy(tmp_path / "sft"), SETTING)


def test_sfts_own_looks_lie_at_no_distance_and_begin_where_they_are(sft: FromSFT, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", looked_at(0, ROWS))
    trail = read_trail("a", tmp_path / "a.jsonl", PROMPTS)
    assert trail is not None
    assert [step for step, _, _ in trail.looks] == [1, 2]
    start, looks = sft.start(trail), sft.looks(trail)
    for look in looks:
        assert look.log_ratio == pytest.approx(np.zeros(len(ROWS)), abs=1e-4)
        assert look.rollouts.completion_ids == start.rollouts.completion_ids
        assert look.rollouts.prompt_ids == start.rollouts.prompt_ids


def test_log_ratios_are_the_recorded_log_prob_less_sfts(sft: FromSFT, tmp_path: Path) -> None:
    rows = looked_at(5, ROWS)
    write_jsonl(tmp_path / "b.jsonl", rows)
    trail = read_trail("b", tmp_path / "b.jsonl", PROMPTS)
    assert trail is not None
    found = sft.looks(trail)[0]
    encoder = sft._sampler(trail).encoder
    for place, row in enumerate(rows[: len(ROWS)]):
        ids, answer = encoder.prompt(row["prompt"], 6), row["completion_ids"]
        with torch.no_grad():
            each = sft.model(torch.tensor([ids + answer])).logits[0].double().log_softmax(dim=-1)
        theirs = sum(float(each[len(ids) - 1 + t, token]) for t, token in enumerate(answer))
        assert found.log_ratio[place] == pytest.approx(row["logprob"] - theirs, abs=1e-4)


def test_equal_prompts_and_noise_are_sampled_once(sft: FromSFT, tmp_path: Path) -> None:
    trails = []
    for name, rows in (("a", looked_at(1, ROWS)), ("b", looked_at(2, ROWS)), ("c", looked_at(1, ROWS[:2]))):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        trails.append(read_trail(name, tmp_path / f"{name}.jsonl", PROMPTS))
    starts = [sft.start(trail) for trail in trails]
    assert starts[0].rollouts is starts[1].rollouts
    assert starts[2].rollouts.completion_ids == starts[0].rollouts.completion_ids[:2]


def test_what_is_not_asked_for_is_left_out_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write_jsonl(file, rows := looked_at(1, ROWS))
    trail = read_trail("a", file, {"q1": PROMPTS["q1"], "q3": PROMPTS["q3"]})
    assert trail is not None
    assert [prompt.id for prompt in trail.prompts] == ["q1", "q3"]
    assert all(len(look.texts) == len(own) == 2 for _, look, own in trail.looks)
    assert read_trail("a", file, {}) is None
    file.write_text("")
    assert read_trail("a", file, PROMPTS) is None
    write_jsonl(file, rows[:-1])
    with pytest.raises(DataError, match="looks at different prompts"):
        read_trail("a", file, PROMPTS)
    with pytest.raises(DataError, match="missing"):
        read_trail("a", tmp_path / "none.jsonl", PROMPTS)


def answers(name: str, gold: list[float], reward: list[float], log_ratio: list[float]) -> Answers:
    n = len(gold)
    return Answers(
        name, tuple(PROMPTS.values())[:n], ("x",) * n, np.full(n, 3), np.ones(n, dtype=bool),
        np.array(log_ratio), np.array(reward), np.array(gold), "gold", np.array(gold), None,
    )  # fmt: skip


def test_figures_of_a_look_by_hand() -> None:
    sft = answers("sft", [1.0, 2.0, 3.0], [0.0, 0.5, 1.0], [0.0, 0.0, 0.0])
    look = answers("ppo", [2.0, 2.0, 5.0], [1.0, 1.5, 2.0], [0.5, 1.0, 3.0])
    found = look_figures(4, look, sft, resamples=200)
    assert (found["step"], found["n"], found["kl"]) == (4, 3, 1.5)
    assert found["gold"]["mean"] == found["judge_score"]["mean"] == 3.0
    assert (found["reward"]["mean"], found["judge_gain"]["mean"]) == (1.5, 1.0)
    # The gain by the reward model is 1 on every prompt: paired, it has no spread.
    assert found["reward_gain"] == {"mean": 1.0, "ci95": [1.0, 1.0], "n": 3}
    whole = trail_figures([4, 8], [look, sft], sft, resamples=200)
    assert list(whole["looks"]) == ["4", "8"]
    assert whole["looks"]["8"]["judge_gain"]["mean"] == whole["looks"]["8"]["kl"] == 0.0
    assert whole["sft"]["gold"]["mean"] == 2.0
    ungolden = look_figures(4, dataclasses.replace(look, gold=None), sft, resamples=100)
    assert ungolden["gold"] is None
    with pytest.raises(DataError, match="answered"):
        look_figures(4, look.take([0, 1]), sft)


@pytest.fixture
def workspace(stage_folder: Path) -> Path:
    """Models, RL prompts of the embedded world, and the looks of two policies."""
    evaluated = {"policies": ["base", "sft", "ppo", "dpo", "off"], "bootstrap": 100, "batch_size": 8}
    params = {
        "seed": 0,
        "evaluate": evaluated,
        "compute": {"device": "cpu", "precision": "fp32", "threads": 1},
    }
    (stage_folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_json(stage_folder / "runs" / "environment.json", ENVIRONMENT.to_dict())
    tiny.saved(stage_folder / "models" / "sft")
    RewardModel.create(stage_folder / "models" / "sft", seed=1).save(stage_folder / "models" / "reward")
    write_json(stage_folder / "models" / "judge" / "judge.json", {"kind": "gold"})
    rows = [*evaluation(World.make(0), 4, 0, 0), {"id": "else", "prompt": "Hm?", "source": "a file"}]
    write_jsonl(stage_folder / "data" / "validated" / "prompts.jsonl", rows)
    write_jsonl(stage_folder / "reports" / "looks" / "dpo.jsonl", looked_at(3, rows))
    write_jsonl(stage_folder / "reports" / "looks" / "ppo.jsonl", looked_at(0, rows[:3], (4, 8, 12)))
    write_jsonl(stage_folder / "reports" / "looks" / "off.jsonl", [])
    write_jsonl(stage_folder / "reports" / "looks" / "gone.jsonl", looked_at(3, rows))
    return stage_folder


def test_the_stage_judges_every_policy_of_the_run(workspace: Path) -> None:
    importlib.import_module("tasks.looks").main()
    found = read_json(workspace / "metrics" / "looks.json")
    assert found["judge"] == "gold"
    assert set(found["policies"]) == {"ppo", "dpo"}
    dpo, ppo = found["policies"]["dpo"], found["policies"]["ppo"]
    assert set(dpo["looks"]) == {"1", "2"}
    assert {look["n"] for look in dpo["looks"].values()} == {4}, "gold judges its own world alone"
    assert dpo["looks"]["1"]["kl"] == dpo["looks"]["2"]["kl"] != 0
    # The policy looked at as ppo has SFT's weights.
    for look in ppo["looks"].values():
        assert look["kl"] == pytest.approx(0, abs=1e-4)
        assert look["gold"] == ppo["sft"]["gold"]
        assert look["reward_gain"]["mean"] == 0
    assert look["judge_gain"]["ci95"] == [0, 0]
    assert json.loads((workspace / "runs" / "looks.json").read_text())["stage"] == "looks"


def test_without_looks_no_model_is_loaded(workspace: Path) -> None:
    for file in (workspace / "reports" / "looks").iterdir():
        file.write_text("")
    for file in (workspace / "models").rglob("*.safetensors"):
        file.unlink()
    importlib.import_module("tasks.looks").main()
    assert read_json(workspace / "metrics" / "looks.json") == {"judge": "gold", "policies": {}}


def test_a_reward_model_judges_prompts_from_anywhere(workspace: Path) -> None:
    RewardModel.create(workspace / "models" / "sft", seed=9).save(workspace / "models" / "judge")
    write_json(workspace / "models" / "judge" / "judge.json", {"kind": "reward_model"})
    importlib.import_module("tasks.looks").main()
    found = read_json(workspace / "metrics" / "looks.json")
    look = found["policies"]["dpo"]["looks"]["2"]
    assert (found["judge"], look["n"], look["gold"]) == ("reward_model", 5, None)
    assert look["judge_score"]["mean"] != look["reward"]["mean"]
