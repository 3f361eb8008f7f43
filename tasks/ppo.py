"""The stage ppo: the SFT policy improves against the reward model under a KL penalty."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.ppo import PPOConfig
from prefloop.data.templates import Encoded
from prefloop.files import read_jsonl
from prefloop.models.adapters import attach, merge, reference_of
from prefloop.models.critic import make_critic
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.rewards.sources import LearnedReward, MissingEnd, RewardSum
from prefloop.training.language_model import encode_demonstrations
from prefloop.training.ppo import PPOTrainer
from tasks.support.stage import Stage
from tasks.support.training import card, prepare, within_context

PROMPTS = Path("data/validated/prompts.jsonl")
DEMONSTRATIONS = Path("data/validated/demonstrations.jsonl")


def main() -> None:
    """Writes models/ppo."""
    with Stage.open("ppo", PPOConfig) as stage:
        bench, config = prepare(stage), stage.config
        device, precision = bench.environment.device, bench.environment.precision
        stage.dataset("prompts", PROMPTS)
        model, tokenizer = load_policy("models/sft", device=device, trust_remote_code=bench.trust_remote_code)
        config = within_context(config, model)
        reward_model = RewardModel.load(
            "models/reward", device=device, precision=precision, trust_remote_code=bench.trust_remote_code
        )
        critic = make_critic(config, model, reward_model, tokenizer).to(device)
        policy = attach(model, config.lora, seed=stage.seed)
        demonstrations: list[Encoded] = []
        if config.ptx_coef:
            stage.dataset("demonstrations", DEMONSTRATIONS)
            demonstrations = encode_demonstrations(read_jsonl(DEMONSTRATIONS), tokenizer, config.max_length)[
                0
            ]
        rewards = RewardSum(
            {
                "reward_model": (1.0, LearnedReward(reward_model, config.score_clip)),
                "missing_eos": (config.missing_eos_penalty, MissingEnd()),
            }
        )
        trainer = PPOTrainer(
            policy,
            reference_of(policy),
            critic,
            tokenizer,
            rewards,
            list(read_jsonl(PROMPTS)),
            config,
            seed=stage.seed,
            precision=precision,
            demonstrations=demonstrations,
        )
        stage.say(
            f"{len(trainer.prompts):,} prompts to sample, "
            f"{len(trainer.held_out):,} held out to choose the checkpoint"
        )
        trainer.train(bench.checkpoints, stage.recorder)
        with stage.output("models/ppo") as folder:
            about = card(stage, "The SFT policy, tuned by PPO.", [f"{len(trainer.prompts):,} prompts"])
            save_model(merge(policy), tokenizer, folder, about)
        stage.metrics(
            {
                "prompts": len(trainer.prompts),
                "held_out": len(trainer.held_out),
                **trainer.selection.figures(),
            }
        )


if __name__ == "__main__":
    main()
