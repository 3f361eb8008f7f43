"""TRL's side of GRPO and RLOO: its own advantages and losses, on completions and scores that it is given."""

from __future__ import annotations

from typing import Any

import torch
import trl.trainer.grpo_trainer
import trl.trainer.rloo_trainer
from datasets import Dataset
from recording import Noting, Recording, answer_jobs
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_common import VERSIONS, Recorded, arguments, load, record


class Given(Recorded):
    """Before a trainer's class: what it would sample is `draws`, one after the other."""

    draws: list[dict[str, Any]]
    at = -1

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        self.at += 1
        given = self.draws[self.at]
        assert [list(ids) for ids in prompt_ids] == given["prompts"], "prompts differ"
        completions = given["completions"]
        return completions if isinstance(self, RLOOTrainer) else (completions, None)

    def score(self, prompts: Any, completions: Any, completion_ids: Any, **kwargs: Any) -> list[float]:
        given = self.draws[self.at]
        assert completion_ids == given["completions"], "completions differ"
        return given["scores"]


def train(job: dict[str, Any]) -> Noting:
    """Trains on the job's rollout batches."""
    section = job["section"]
    model, tokenizer = load(job)
    kind, config = (GRPOTrainer, GRPOConfig) if job["method"] == "grpo" else (RLOOTrainer, RLOOConfig)
    common = arguments(job)
    trainer: Any = None

    def score(**kwargs: Any) -> list[float]:
        return trainer.score(**kwargs)

    trainer = type("Given", (Given, kind), {})(
        model=model,
        reward_funcs=score,
        args=config(
            **common,
            num_generations=section["group_size"],
            num_iterations=section["inner_epochs"],
            steps_per_generation=section["batch_size"] // common["per_device_train_batch_size"],
            beta=section["kl_coef"],
            temperature=section.get("temperature", 1.0),
            max_completion_length=8,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in job["prompts"]]),
        processing_class=tokenizer,
    )
    trainer.draws = job["draws"]

    def shuffled(rows: dict[str, Any]) -> dict[str, Any]:
        """In place of a shuffle: the order in which prefloop's updates take a batch's rows."""
        order = job["orders"][trainer.at][0]
        return {name: x[order] if isinstance(x, torch.Tensor) and x.ndim else x for name, x in rows.items()}

    for module in (trl.trainer.grpo_trainer, trl.trainer.rloo_trainer):
        module.shuffle_sequence_dict = shuffled
    return record(trainer, Recording())


if __name__ == "__main__":
    answer_jobs(train, VERSIONS)
