"""What the stages share that improve the SFT policy on its own completions: their materials and their end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.on_policy import OnPolicyConfig
from prefloop.config.scoring import ScoringConfig
from prefloop.data.templates import Encoded
from prefloop.files import read_jsonl
from prefloop.models.adapters import attach, reference_of
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import (
    LearnedReward,
    LengthSource,
    MissingEnd,
    Overlong,
    RewardSource,
    RewardSum,
)
from prefloop.training.language_model import encode_demonstrations
from prefloop.training.on_policy import OnPolicyTrainer
from tasks.support.looks import PROMPTS
from tasks.support.policy_output import write_policy
from tasks.support.stage import Stage
from tasks.support.training import Workbench, prepare, within_context

DEMONSTRATIONS = Path("data/validated/demonstrations.jsonl")
C = TypeVar("C", bound=ScoringConfig)
P = TypeVar("P", bound=OnPolicyConfig)


@dataclass
class Materials(Generic[C]):
    """What a stage starts from.

    Attributes:
        config: the stage's section, `max_length` within what the model reads.
        model: the SFT policy as it was loaded. reward_model: what scores, beside what `rewards` adds.
        prompts: rows to sample from.
    """

    bench: Workbench
    config: C
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reward_model: RewardModel
    rewards: RewardSum
    prompts: list[dict[str, Any]]


def gather(stage: Stage[C]) -> Materials[C]:
    """Prepares the process and loads the SFT policy, the reward model and the prompts."""
    bench = prepare(stage)
    device, trusted = bench.environment.device, bench.trust_remote_code
    stage.dataset("prompts", PROMPTS)
    model, tokenizer = load_policy("models/sft", device=device, trust_remote_code=trusted)
    reward_model = RewardModel.load(
        "models/reward", device=device, precision=bench.environment.precision, trust_remote_code=trusted
    )
    rewards = reward_sum(stage.config, reward_model)
    config = within_context(stage.config, model)
    return Materials(bench, config, model, tokenizer, reward_model, rewards, list(read_jsonl(PROMPTS)))


def reward_sum(config: ScoringConfig, reward_model: RewardModel) -> RewardSum:
    """The sources that the section asks for."""
    sources: dict[str, tuple[float, RewardSource | LengthSource]] = {
        "reward_model": (1.0, LearnedReward(reward_model, config.score_clip))
    }
    if config.missing_eos == "penalty":
        sources["missing_eos"] = (config.missing_eos_penalty, MissingEnd())
    if config.overlong_penalty:
        overlong = Overlong(config.sampling.max_new_tokens, config.overlong_tokens)
        sources["overlong"] = (config.overlong_penalty, overlong)
    return RewardSum(sources, config.missing_eos_score if config.missing_eos == "score" else None)


def demonstrations(
    stage: Stage[Any], config: OnPolicyConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Encoded]:
    """Encoded demonstrations for PPO-ptx; none where it is off."""
    if not config.ptx_coef:
        return []
    stage.dataset("demonstrations", DEMONSTRATIONS)
    return encode_demonstrations(read_jsonl(DEMONSTRATIONS), tokenizer, config.max_length)[0]


def improve(
    stage: Stage[P],
    trainer_of: Callable[..., OnPolicyTrainer[Any]],
    what: str,
    further: Callable[[Materials[P]], Mapping[str, Any]] = lambda materials: {},
) -> None:
    """A whole stage: gathers, trains, and writes models/POLICY and the stage's figures.

    Args:
        trainer_of: the method's trainer. what: one sentence for the model card.
        further: arguments of the trainer that only this method has, made before adapters are attached.
    """
    materials = gather(stage)
    config, tokenizer = materials.config, materials.tokenizer
    own = further(materials)
    policy = attach(materials.model, config.lora, seed=stage.seed)
    trainer = trainer_of(
        policy=policy,
        reference=reference_of(policy),
        tokenizer=tokenizer,
        rewards=materials.rewards,
        prompts=materials.prompts,
        config=config,
        seed=stage.seed,
        precision=materials.bench.environment.precision,
        demonstrations=demonstrations(stage, config, tokenizer),
        **own,
    )
    sampled, held = len(trainer.prompts), len(trainer.held_out)
    stage.say(f"{sampled:,} prompts to sample, {held:,} held out to choose the checkpoint")
    outcome = trainer.train(materials.bench.checkpoints, stage.recorder)
    write_policy(stage, policy, tokenizer, what, f"{sampled:,} prompts", trainer.selection.looks)
    stage.metrics({"prompts": sampled, "held_out": held, **trainer.selection.figures(), **outcome})
