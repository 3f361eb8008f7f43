"""prefloop's side of trainings on sampled completions, which are given to both sides instead of sampled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.alongside.material import SEED, Material
from benchmarks.alongside.offline import COMMON
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Row
from benchmarks.peers.recording import Recording
from prefloop.config.grpo import GRPOConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.rloo import RLOOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.data.batching import Order
from prefloop.data.templates import ChatEncoder
from prefloop.models.critic import make_critic
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import RewardSum
from prefloop.rollout.sampling import Rollouts
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.experience import Scored
from prefloop.training.groups import GRPOTrainer, RLOOTrainer
from prefloop.training.loop import Part
from prefloop.training.noise import generator, permutation
from prefloop.training.ppo import PPOTrainer
from prefloop.training.recorder import Silent

LONGEST = 8
"""Tokens of the longest completion."""

SECTION = {
    **COMMON,
    "batch_size": 16,
    "inner_epochs": 2,
    "minibatches": 1,
    "select_kl": 0.0,
    "kl_coef": 0.1,
}
"""Keys of every row's section: two updates on each batch, so that ratios leave 1, and the KL counts."""

KINDS: dict[str, type[PPOConfig | GRPOConfig | RLOOConfig]] = {
    "ppo": PPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
}


def section(row: Row, steps: int) -> dict[str, Any]:
    """A row's whole section; `steps` counts optimiser steps, the section's own rollout batches."""
    whole = {**SECTION, **({"group_size": 4} if row.method != "ppo" else {}), **row.section}
    return {**whole, "steps": steps // (whole["inner_epochs"] * whole["minibatches"])}


@dataclass(frozen=True)
class Draw:
    """One rollout batch: prompts by index and in tokens, completions in tokens, their scores."""

    indices: list[int]
    prompts: list[list[int]]
    completions: list[list[int]]
    scores: list[float]


def draws(side: Side, tokenizer: PreTrainedTokenizerBase) -> list[Draw]:
    """Every rollout batch of a row: random words, scores of mean 0, some groups with one score for all.

    Completions end with the end token, but for some of the longest, which were cut; in rows with the option
    `one_length` all are of the longest's length.
    """
    prompts, groups = side.material.conversations, int(side.section.get("group_size", 1))
    encoder = ChatEncoder(tokenizer, side.section["max_length"])
    order = Order(len(prompts), side.section["batch_size"] // groups, (SEED, side.row.method))
    words = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    found = []
    for step in range(side.section["steps"]):
        indices = [i for i in order.step(step) for _ in range(groups)]
        draw = generator((SEED, side.row.method, "draw", step))
        completions = []
        for _ in indices:
            length = LONGEST if "one_length" in side.row.options else int(draw.integers(2, LONGEST + 1))
            ids = [words[int(i)] for i in draw.integers(0, len(words), length)]
            if length < LONGEST or draw.random() < 0.5:
                ids[-1] = int(tokenizer.eos_token_id)
            completions.append(ids)
        scores = [float(x) for x in draw.normal(size=len(indices))]
        if groups > 1 and step % 3 == 0:
            scores[:groups] = [scores[0]] * groups
        asked = [encoder.prompt(prompts[i]["prompt"], LONGEST) for i in indices]
        found.append(Draw(indices, asked, completions, scores))
    return found


def prompts_in_order(side: Side) -> list[Any]:
    """The prompts of every rollout batch, each once, one batch after the other."""
    prompts, groups = side.material.conversations, int(side.section.get("group_size", 1))
    order = Order(len(prompts), side.section["batch_size"] // groups, (SEED, side.row.method))
    return [prompts[i]["prompt"] for step in range(side.section["steps"]) for i in order.step(step)]


class Given:
    """Stands in for a trainer's collector: its completions and scores are `draws`."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.draws = draws

    def draw(self, indices: Sequence[int], step: int) -> Scored:
        given = self.draws[step]
        assert list(dict.fromkeys(given.indices)) == list(indices), "the order of prompts differs"
        texts = [str(i) for i in range(len(given.scores))]
        ended = [True] * len(texts)
        unsaid = [[0.0] * len(ids) for ids in given.completions]  # no engine drew them
        rollouts = Rollouts(given.prompts, given.completions, texts, ended, unsaid)
        return Scored(given.indices, rollouts, torch.tensor(given.scores), {})


class Recorded:
    """Before a trainer's class: every update goes to `recording`, which has a step an update."""

    recording: Recording

    def parts(self, *args: Any, **kwargs: Any) -> Iterator[Part]:
        for part in super().parts(*args, **kwargs):  # type: ignore[misc]
            self.recording.add(part.loss.detach())
            yield part

    def apply(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        figures: dict[str, float] = super().apply(*args, **kwargs)  # type: ignore[misc]
        # PPO clips policy and critic apart; the peer has one norm over both.
        self.recording.step(hypot(figures["grad_norm"], figures.get("critic_grad_norm", 0.0)))
        return figures


class RecordedPPO(Recorded, PPOTrainer):
    pass


class RecordedGRPO(Recorded, GRPOTrainer):
    pass


class RecordedRLOO(Recorded, RLOOTrainer):
    pass


def run(side: Side) -> Recording:
    """Trains and returns what was recorded."""
    policy, tokenizer = load_policy(side.material.policy)
    reference, _ = load_policy(side.material.policy)
    config = config_of(side.row, side.section)
    trainer = _trainer(side.material, config, policy, reference, tokenizer)
    trainer.collector = Given(draws(side, tokenizer))
    trainer.recording = recording = Recording()
    with recording.watching(policy):
        trainer.train(Checkpoints(side.scratch / "checkpoints", 1e9), Silent())
    return recording


def config_of(row: Row, section: dict[str, Any]) -> PPOConfig | GRPOConfig | RLOOConfig:
    """A row's configuration of its whole section."""
    keys = dict(section)
    keys["sampling"] = SamplingConfig(max_new_tokens=LONGEST, temperature=keys.pop("temperature", 1.0))
    return KINDS[row.method](**keys)


def _trainer(
    material: Material, config: Any, policy: Any, reference: Any, tokenizer: PreTrainedTokenizerBase
) -> Any:
    prompts = [{"prompt": row["prompt"]} for row in material.conversations]
    if isinstance(config, PPOConfig):
        critic = make_critic(config, policy, RewardModel.load(material.reward), tokenizer)
        return RecordedPPO(policy, reference, critic, tokenizer, RewardSum({}), prompts, config, seed=SEED)
    kind = RecordedGRPO if isinstance(config, GRPOConfig) else RecordedRLOO
    return kind(policy, reference, tokenizer, RewardSum({}), prompts, config, seed=SEED)


def job(side: Side) -> dict[str, Any]:
    """What the peer's script needs for this row."""
    _, tokenizer = load_policy(side.material.policy)
    given = draws(side, tokenizer)
    updates = side.section["inner_epochs"] * side.section["minibatches"]
    rows = side.section["batch_size"]
    return {
        "name": side.row.name,
        "method": side.row.method,
        "model": str(side.material.policy),
        "reward": str(side.material.reward),
        "prompts": [
            side.material.conversations[i]["prompt"] for draw in given for i in dict.fromkeys(draw.indices)
        ],
        "draws": [vars(draw) for draw in given],
        # Which rows of a batch an inner epoch's updates take, one after the other.
        "orders": [
            [
                permutation((SEED, side.row.method, step, "inner", epoch), rows)
                for epoch in range(side.section["inner_epochs"])
            ]
            for step in range(side.section["steps"])
        ],
        "steps": side.section["steps"] * updates,
        "section": side.section,
        "peer": side.row.peer,
        "options": list(side.row.options),
        "scratch": str(side.scratch / "peer"),
    }
