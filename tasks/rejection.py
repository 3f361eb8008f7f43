"""The stage rejection: the SFT policy learns from the best of its own completions."""

from __future__ import annotations

from prefloop.config.rejection import RejectionConfig
from prefloop.models.adapters import attach
from prefloop.training.looks import Looks, apart
from prefloop.training.rejection import RejectionTrainer
from tasks.support.policy_fitting import gather
from tasks.support.policy_output import write_policy
from tasks.support.policy_stage import open_policy


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("rejection", RejectionConfig) as stage:
        given = gather(stage)
        policy = attach(given.model, given.config.lora, seed=stage.seed)
        # Apart whether there are looks or not, so that looks change nothing.
        shown = min(given.config.look_prompts, len(given.prompts) // 4)
        prompts, held_out = apart(given.prompts, shown, (stage.seed, "looks"))
        trainer = RejectionTrainer(
            policy,
            given.tokenizer,
            given.rewards,
            prompts,
            given.config,
            seed=stage.seed,
            precision=given.bench.environment.precision,
        )
        looks = Looks(
            policy,
            given.tokenizer,
            held_out,
            given.config.sampling,
            given.config.looks,
            seed=stage.seed,
            precision=given.bench.environment.precision,
            micro_batch_size=given.config.micro_batch_size,
        )
        count, size = len(prompts), given.config.group_size
        stage.say(
            f"the best of {size} completions of each of {count:,} prompts, {given.config.rounds} rounds"
        )
        outcome = trainer.train(given.bench.checkpoints, stage.recorder, looks)
        write_policy(
            stage,
            policy,
            given.tokenizer,
            "The SFT policy, tuned on the best of its own completions.",
            f"{count:,} prompts, the best of {size} completions each",
            looks.rows,
        )
        rounds = {str(number + 1): kept.figures for number, kept in sorted(trainer.rounds.items())}
        stage.metrics({"prompts": count, "held_out": shown, "rounds": rounds, **outcome})


if __name__ == "__main__":
    main()
