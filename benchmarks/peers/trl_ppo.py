"""TRL's side of PPO (1.12.0 is the last with it), on completions and scores that it is given."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from recording import Recording, answer_jobs
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_common import VERSIONS, arguments, load

THEIR_END = "sequence_lengths_p1 = sequence_lengths + 1"
OUR_END = "sequence_lengths_p1 = sequence_lengths"


def train(job: dict[str, Any]) -> Recording:
    """Trains on the job's rollout batches."""
    section = job["section"]
    policy, tokenizer = load(job)
    reference, _ = load(job)
    critic = AutoModelForSequenceClassification.from_pretrained(
        job["reward"], num_labels=1, dtype=torch.float32
    )
    # prefloop's critic: the reward model's trunk, and a head with a bias that starts at 0.
    critic.score = nn.Linear(critic.config.hidden_size, 1)
    nn.init.zeros_(critic.score.weight)
    nn.init.zeros_(critic.score.bias)
    common = arguments(job)
    rows, accumulated = section["batch_size"], common["gradient_accumulation_steps"]
    common["per_device_train_batch_size"] = rows // accumulated
    judge = nn.Module()  # scores are given
    trainer = PPOTrainer(
        args=PPOConfig(
            **{**common, "max_steps": -1},
            total_episodes=rows * section["steps"],
            num_ppo_epochs=section["inner_epochs"],
            num_mini_batches=section["minibatches"],
            temperature=section.get("temperature", 1.0),
            kl_coef=section["kl_coef"],
            whiten_rewards=section.get("whiten_rewards", False),
            cliprange=section["clip_range"],
            cliprange_value=section["value_clip_range"],
            vf_coef=0.1,
            gamma=section.get("gamma", 1.0),
            lam=0.95,
            stop_token="eos",
            missing_eos_penalty=None,
            num_sample_generations=0,
            response_length=8,
            local_rollout_forward_batch_size=rows,
        ),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=judge,
        value_model=critic,
        train_dataset=Dataset.from_list([{"input_ids": [1]}] * rows),
        eval_dataset=Dataset.from_list([{"input_ids": [1]}] * rows),
    )
    given = Given(job, tokenizer.pad_token_id, judge)
    trainer.dataloader = [{"input_ids": queries} for queries in given.queries]
    ppo_trainer.batch_generation = given.generate
    ppo_trainer.get_reward = given.reward
    ppo_trainer.np = SimpleNamespace(random=SimpleNamespace(permutation=given.permutation))
    recording = Recording()
    with recording.watching(policy):
        recorded(trainer, recording, accumulated)
        loop = ended_at_the_end if "score_at_end" in job["options"] else PPOTrainer.train
        loop(trainer)
    return recording


class Given:
    """Stands in for what TRL would draw: prompts, completions, scores, the order of minibatches."""

    def __init__(self, job: dict[str, Any], pad: int, judge: nn.Module) -> None:
        self.pad, self.judge = pad, judge
        self.draws = job["draws"]
        self.queries = [left(draw["prompts"], pad) for draw in self.draws]
        self.orders: Iterator[list[int]] = iter(order for step in job["orders"] for order in step)
        self.at = -1

    @torch.no_grad()
    def generate(self, policy: nn.Module, queries: Tensor, _: int, pad: int, config: Any) -> tuple[Any, Any]:
        """Prompts and completions, and logits as sampling would have left them: over the temperature."""
        self.at += 1
        assert torch.equal(queries, self.queries[self.at])
        width = queries.shape[1]
        completions = right(self.draws[self.at]["completions"], pad)
        whole = torch.cat([queries, completions], dim=1)
        logits = ppo_trainer.forward(policy, whole, pad).logits[:, width - 1 : -1]
        return whole, logits / config.temperature

    def reward(self, model: nn.Module, *args: Any) -> Any:
        """The given scores; of the critic, what it computes."""
        if model is self.judge:
            return None, torch.tensor(self.draws[self.at]["scores"]), None
        return reward_of(model, *args)

    def permutation(self, size: int) -> list[int]:
        order = next(self.orders)
        assert len(order) == size
        return order


reward_of = ppo_trainer.get_reward


def recorded(trainer: Any, recording: Recording, accumulated: int) -> None:
    """Has every backward pass and optimiser step of a trainer reported."""
    backward, optimiser = trainer.accelerator.backward, trainer.optimizer.optimizer
    step = optimiser.step

    def noted_backward(loss: Tensor, **kwargs: Any) -> None:
        recording.add(loss.detach() / accumulated)
        backward(loss, **kwargs)

    def noted_step(*args: Any, **kwargs: Any) -> Any:
        gradients = [
            p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None
        ]
        recording.step(nn.utils.get_total_norm(gradients))
        return step(*args, **kwargs)

    trainer.accelerator.backward = noted_backward
    optimiser.step = noted_step


def _with_our_end() -> Any:
    """TRL's loop with one line changed: the score, and the last value, are those of the last real token."""
    source = textwrap.dedent(inspect.getsource(PPOTrainer.train))
    assert source.count(THEIR_END) == 1, "TRL's loop is not the one that this script knows"
    names: dict[str, Any] = {}
    exec(compile(source.replace(THEIR_END, OUR_END), "ppo", "exec"), vars(ppo_trainer), names)
    return names["train"]


ended_at_the_end = _with_our_end()


def left(rows: list[list[int]], pad: int) -> Tensor:
    """Pads on the left."""
    width = max(len(row) for row in rows)
    return torch.tensor([[pad] * (width - len(row)) + row for row in rows])


def right(rows: list[list[int]], pad: int) -> Tensor:
    """Pads on the right."""
    width = max(len(row) for row in rows)
    return torch.tensor([row + [pad] * (width - len(row)) for row in rows])


if __name__ == "__main__":
    answer_jobs(train, VERSIONS)
