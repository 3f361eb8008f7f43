"""Architectures that transformers knows go through every training: SFT, reward model, PPO, DPO."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prefloop.config.dpo import DPOConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.reward import RewardConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.config.sft import SFTConfig
from prefloop.models.adapters import reference_of
from prefloop.models.critic import make_critic
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.rewards.sources import LearnedReward, RewardSum
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.direct import encode_comparisons
from prefloop.training.dpo import fit_dpo
from prefloop.training.language_model import encode_demonstrations, finetune
from prefloop.training.ppo import PPOTrainer
from prefloop.training.reference import reference_logprobs
from prefloop.training.reward import encode_rankings, fit_reward_model
from prefloop.training.reward_normalisation import normalise
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import DEMONSTRATIONS, PROMPTS, RANKINGS

STEPS = {"steps": 2, "batch_size": 4, "max_length": 48}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gpt2", "gemma3_text", "mistral"])
def test_an_architecture_goes_through_every_training(kind: str, tmp_path: Path) -> None:
    tokens = tiny.tokenizer()
    model = tiny.model(tokens, kind=kind, layers=2)
    recorder = StopAfter()
    common = {"seed": 0, "precision": "fp32", "recorder": recorder}
    rows, _ = encode_demonstrations(DEMONSTRATIONS, tokens, 48)
    finetune(model, tokens, rows, SFTConfig(**STEPS), checkpoints=Checkpoints(tmp_path / "1", 1e9), **common)
    save_model(model, tokens, tmp_path / "sft")

    reward_model = RewardModel.create(tmp_path / "sft", seed=0)
    encoded = encode_rankings(reward_model, RANKINGS, 48)
    fit_reward_model(
        reward_model,
        encoded,
        RewardConfig(**STEPS),
        seed=0,
        checkpoints=Checkpoints(tmp_path / "2", 1e9),
        recorder=recorder,
    )
    normalise(reward_model.eval(), tiny.QUESTIONS, [*tiny.ANSWERS, "Red.", "A lamp."], RewardConfig())
    scores = reward_model.score(tiny.QUESTIONS, [*tiny.ANSWERS, "Red.", "A lamp."])
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, rel=1e-4)

    policy, _ = load_policy(tmp_path / "sft")
    config = PPOConfig(sampling=SamplingConfig(max_new_tokens=8), select_every=2, **STEPS)
    critic = make_critic(config, policy, reward_model, tokens)
    rewards = RewardSum({"reward_model": (1.0, LearnedReward(reward_model))})
    trainer = PPOTrainer(policy, reference_of(policy), critic, tokens, rewards, PROMPTS, config, seed=0)
    trainer.train(Checkpoints(tmp_path / "3", 1e9), recorder)
    save_model(policy, tokens, tmp_path / "ppo")

    other, _ = load_policy(tmp_path / "sft")
    dpo = DPOConfig(**STEPS)
    comparisons, _ = encode_comparisons(RANKINGS, tokens, dpo)
    reference = reference_logprobs(other, tokens, comparisons, "fp32")
    checkpoints = Checkpoints(tmp_path / "4", 1e9)
    fit_dpo(other, tokens, comparisons, reference, dpo, checkpoints=checkpoints, **common)
    save_model(other, tokens, tmp_path / "dpo")

    # The first DPO step starts at the reference: every pair has a margin of 0.
    assert recorder.rows[-2]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert all(math.isfinite(value) for row in recorder.rows for value in row.values())
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").get_input_embeddings().weight
    for name in ("ppo", "dpo"):
        end = AutoModelForCausalLM.from_pretrained(tmp_path / name).get_input_embeddings().weight
        assert not torch.equal(start, end), name
