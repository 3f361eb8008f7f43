"""TRL's side of timed PPO (1.12.0 is the last with it): its own loop, sampling and scoring included."""

from __future__ import annotations

from typing import Any

from clock import Clock
from datasets import Dataset
from recording import answer_jobs
from transformers import AutoModelForSequenceClassification, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_common import VERSIONS, arguments, load


class Ticking(TrainerCallback):
    """Ends a clock's step with each rollout batch, and counts the updates that were made of it."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.updates = clock, 0

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.clock.step()

    def count(self, *args: Any) -> None:
        self.updates += 1


def train(job: dict[str, Any]) -> Clock:
    """Trains on what the policy samples.

    Raises:
        RuntimeError: TRL made fewer or more updates than prefloop does.
    """
    clock = Clock()
    ticking = Ticking(clock)
    section = job["section"]
    (policy, tokenizer), (reference, _) = load(job), load(job)
    judge, critic = (
        AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1) for _ in range(2)
    )
    encoded = [
        tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in job["prompts"]
    ]
    rows = Dataset.from_list([{"input_ids": ids} for ids in encoded])
    trainer = PPOTrainer(
        args=PPOConfig(
            **{**arguments(job), "max_steps": -1},
            total_episodes=section["batch_size"] * section["steps"],
            num_ppo_epochs=section["inner_epochs"],
            num_mini_batches=section["minibatches"],
            temperature=1.0,
            kl_coef=section["kl_coef"],
            vf_coef=0.1,
            gamma=1.0,
            lam=0.95,
            stop_token="eos",
            num_sample_generations=0,
            response_length=job["longest"],
            **({"local_rollout_forward_batch_size": section["batch_size"]} if job["tuned"] else {}),
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=judge,
        value_model=critic,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[ticking],
    )
    truncated = ppo_trainer.truncate_response

    def counted(stop: int, pad: int, responses: Any) -> Any:
        cut = truncated(stop, pad, responses)
        clock.add((cut != pad).sum())  # read at the end
        return cut

    ppo_trainer.truncate_response = counted
    trainer.optimizer.optimizer.register_step_post_hook(ticking.count)
    with clock.watching(policy):
        trainer.train()
    updates = section["steps"] * section["inner_epochs"] * section["minibatches"]
    if ticking.updates != updates:
        raise RuntimeError(f"TRL made {ticking.updates} updates instead of {updates}")
    clock.sampled = clock.as_dict()["losses"]
    return clock


if __name__ == "__main__":
    answer_jobs(train, VERSIONS)
