"""TRL's side of timed trainings that sample: GRPO and RLOO with a reward model."""

from __future__ import annotations

from typing import Any

from clock import Clock
from datasets import Dataset
from recording import answer_jobs
from transformers import AutoModelForSequenceClassification
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl_common import VERSIONS, Recorded, arguments, load, record


class Counted(Recorded):
    """Before a trainer's class: tells the clock how many tokens a step sampled."""

    rows: int
    recording: Clock

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = "train" if self.model.training else "eval"  # type: ignore[attr-defined]
        lengths = self._metrics[mode].get("completions/mean_length")  # type: ignore[attr-defined]
        if lengths:
            self.recording.completions(self.rows * sum(lengths) / len(lengths))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def train(job: dict[str, Any]) -> Clock:
    """Trains on what the policy samples."""
    clock = Clock()
    section = job["section"]
    model, tokenizer = load(job)
    judge = AutoModelForSequenceClassification.from_pretrained(job["reward"], num_labels=1)
    kind, config = (GRPOTrainer, GRPOConfig) if job["method"] == "grpo" else (RLOOTrainer, RLOOConfig)
    trainer = type("Counted", (Counted, kind), {})(
        model=model,
        reward_funcs=judge,
        args=config(
            **arguments(job),
            num_generations=section["group_size"],
            beta=section["kl_coef"],
            temperature=1.0,
            max_completion_length=job["longest"],
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in job["prompts"]]),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
    )
    trainer.rows = section["batch_size"]
    record(trainer, clock)
    return clock


if __name__ == "__main__":
    answer_jobs(train, VERSIONS)
