"""Of models that a training needs beside its policy: the reference of DPO, the critic of PPO."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.alongside.material import Material
from benchmarks.gains.measure import Gain, compare
from benchmarks.timing.sizes import Lengths
from prefloop.config.compute import ComputeConfig
from prefloop.config.dpo import DPOConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.data.comparisons import Ranking
from prefloop.models.critic import make_critic
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import LearnedReward, RewardSum
from prefloop.training.environment import resolve
from prefloop.training.pairs import encode_comparisons
from prefloop.training.ppo import PPOExperience, PPOTrainer
from prefloop.training.reference import reference_logprobs


def reference(
    name: str, model: Any, tokenizer: Any, material: Material, lengths: Lengths, rounds: int
) -> Iterator[Gain]:
    """Log-probs under the reference, read from where an earlier training kept them."""
    precision = resolve(ComputeConfig(device="cpu")).precision
    rows = material.conversations[:128]
    ranked = [Ranking(row["prompt"], [row["chosen"], row["rejected"]], [0, 1]) for row in rows]
    pairs, _ = encode_comparisons(ranked, tokenizer, DPOConfig(max_length=lengths.context))
    with TemporaryDirectory() as folder:
        kept = partial(reference_logprobs, model, tokenizer, pairs, precision, Path(folder))
        computed = partial(reference_logprobs, model, tokenizer, pairs, precision)
        assert all(torch.equal(a, b) for a, b in zip(kept(), computed(), strict=True))
        what = (
            f"log-probs under the reference kept by content, {len(rows)} pairs at {name}, {lengths.name} rows"
        )
        yield compare(what, kept, computed, rounds)


def critic(
    name: str, model: Any, tokenizer: Any, material: Material, lengths: Lengths, rounds: int
) -> Iterator[Gain]:
    """A value head on the policy's trunk for a critic with a trunk of its own."""
    updates = {kind: _update(kind, model, tokenizer, material, lengths) for kind in ("shared", "separate")}
    what = f"a critic on the policy's trunk, an update of PPO at {name}, {lengths.name} rows"
    yield compare(what, updates["shared"], updates["separate"], rounds, use="a setting")


def _update(kind: Any, model: Any, tokenizer: Any, material: Material, lengths: Lengths) -> partial[None]:
    """Gradients of policy and critic on one minibatch of rollouts."""
    precision = resolve(ComputeConfig(device="cpu")).precision
    count = lengths.rows("ppo")
    config = PPOConfig(
        batch_size=count,
        minibatches=2,
        steps=1,
        max_length=lengths.context,
        critic=kind,
        sampling=SamplingConfig(max_new_tokens=lengths.completion[2]),
    )
    judge = RewardModel.load(material.reward, precision=precision)
    trainer = PPOTrainer(
        policy=copy.deepcopy(model),
        reference=model,
        critic=make_critic(config, model, judge, tokenizer),
        tokenizer=tokenizer,
        rewards=RewardSum({"reward_model": (1.0, LearnedReward(judge))}),
        prompts=[{"prompt": row["prompt"]} for row in material.conversations[:count]],
        config=config,
        seed=0,
        precision=precision,
    )
    experience, _ = trainer.collect(0)
    return partial(_gradients, trainer, experience, range(count // 2))


def _gradients(trainer: PPOTrainer, experience: PPOExperience, rows: range) -> None:
    for module, _ in trainer.trained().values():
        module.zero_grad(set_to_none=True)
    for part in trainer.parts(experience, rows, 0):
        part.loss.backward()
