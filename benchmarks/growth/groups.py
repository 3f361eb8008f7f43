"""A rollout batch of GRPO, sampled, scored and learned from, against the size of its groups."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from benchmarks.growth import shapes
from benchmarks.growth.curve import Curve
from benchmarks.growth.stopwatch import WARMING, Case, points
from prefloop.config.grpo import GRPOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.rewards.sources import LearnedReward, RewardSum
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.groups import GRPOTrainer
from prefloop.training.recorder import Recorder

STEPS = WARMING + 3
PROMPTS, NEW_TOKENS = 4, 48
GROUPS = (2, 4, 8, 16, 32, 64)
SHAPE = shapes.shape(64, 2)


@cache
def reward_model() -> RewardModel:
    """Of the policy's shape, random."""
    with tempfile.TemporaryDirectory() as name:
        save_model(shapes.model(SHAPE), shapes.tokenizer(), Path(name))
        return RewardModel.create(name, seed=0)


def train(group: int, recorder: Recorder) -> None:
    """A few rollout batches of `PROMPTS` groups, an update each; the KL makes the reference run, too."""
    config = GRPOConfig(
        batch_size=PROMPTS * group,
        group_size=group,
        steps=STEPS,
        max_length=128,
        schedule="constant",
        sampling=SamplingConfig(max_new_tokens=NEW_TOKENS),
        select_kl=0.0,
    )
    trainer = GRPOTrainer(
        policy=shapes.model(SHAPE),
        reference=shapes.model(SHAPE),
        tokenizer=shapes.tokenizer(),
        rewards=RewardSum({"reward_model": (1.0, LearnedReward(reward_model()))}),
        prompts=[{"prompt": f"{number} {number * 7}"} for number in range(4 * PROMPTS)],
        config=config,
        seed=0,
    )
    with tempfile.TemporaryDirectory() as name:
        trainer.train(Checkpoints(Path(name), 1e9), recorder)


def curves(rounds: int, say: Callable[[str], None]) -> list[Curve]:
    """One curve."""
    cases = [Case(group, group, partial(train, group)) for group in GROUPS]
    found = Curve(
        "grpo rollout and update, group",
        "completions",
        "linear; decoding few rows costs what is fixed a token",
        points(cases, rounds),
    )
    say(f"{found.name}: exponent {found.measured:.2f}, theory {found.predicted:.2f}")
    return [found]
