"""prefloop's side of timed trainings that sample: its engine, a reward model, the whole loop."""

from __future__ import annotations

from typing import Any

from benchmarks.alongside.material import SEED
from benchmarks.alongside.on_policy import KINDS
from benchmarks.alongside.side import Side
from benchmarks.peers.clock import Clock
from prefloop.config.rollout import SamplingConfig
from prefloop.models.critic import make_critic
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import LearnedReward, RewardSum
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.groups import GRPOTrainer, RLOOTrainer
from prefloop.training.ppo import PPOTrainer
from prefloop.training.recorder import Silent

TRAINERS: dict[str, Any] = {"grpo": GRPOTrainer, "rloo": RLOOTrainer, "ppo": PPOTrainer}


class Reporting(Silent):
    """A recorder that ends a clock's step with each rollout batch."""

    def __init__(self, clock: Clock, rows: int) -> None:
        super().__init__()
        self.clock, self.batch = clock, rows

    def log(self, step: int, total: int, values: Any) -> None:
        self.clock.completions(values["length"] * self.batch)
        self.clock.add(values["score"])
        self.clock.step(values["grad_norm"])


def run(side: Side, longest: int, clock: Clock) -> None:
    """Trains from samples, scored by the material's reward model.

    Args:
        longest: completion (tokens, the end token included).
    """
    policy, tokenizer = load_policy(side.material.policy, device=side.device)
    reference, _ = load_policy(side.material.policy, device=side.device)
    judge = RewardModel.load(side.material.reward, device=side.device, precision=side.precision)
    method = side.row.method
    config = KINDS[method](**side.section, sampling=SamplingConfig(max_new_tokens=longest))
    extra = {}
    if method == "ppo":
        extra["critic"] = make_critic(config, policy, judge, tokenizer).to(side.device)
    trainer = TRAINERS[method](
        policy=policy,
        reference=reference,
        tokenizer=tokenizer,
        rewards=RewardSum({"reward_model": (1.0, LearnedReward(judge))}),
        prompts=[{"prompt": row["prompt"]} for row in side.material.conversations],
        config=config,
        seed=SEED,
        precision=side.precision,
        **extra,
    )
    with clock.watching(policy):
        trainer.train(
            Checkpoints(side.scratch / "checkpoints", 1e9), Reporting(clock, side.section["batch_size"])
        )
