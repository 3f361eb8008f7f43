"""TRL's side of trainings on fixed data: SFT, DPO and its losses, ORPO, SimPO, reward models, KTO."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from recording import Noting, answer_jobs
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl_common import VERSIONS, Recorded, arguments, load, record, recording_of


class CompletionNLL:
    """Before ORPO's trainer: the likelihood beside the odds ratio is the chosen completion's alone."""

    def concatenated_forward(self, *args: Any, **kwargs: Any) -> Any:
        chosen, *others, _ = super().concatenated_forward(*args, **kwargs)  # type: ignore[misc]
        return chosen, *others, -chosen.mean()


TRAINERS: dict[str, tuple[type, type]] = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "simpo": (CPOTrainer, CPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "reward": (RewardTrainer, RewardConfig),
}
CHANGES: dict[str, type] = {"completion_nll": CompletionNLL}


def train(job: dict[str, Any]) -> Noting:
    """Trains on the job's rows, which stand in the order of their steps."""
    recording, method = recording_of(job), job["method"]
    kind, config = TRAINERS[method]
    changes = [CHANGES[name] for name in job["options"] if name in CHANGES]
    if method == "reward":
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            job["model"], num_labels=1, dtype=torch.float32
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(job["model"])
    else:
        model, tokenizer = load(job)
    # A timed trainer gets its reference as its users do, by making it.
    given = method in ("dpo", "kto") and not job.get("timed")
    reference = {"ref_model": load(job)[0]} if given else {}
    trainer = type("Trainer", (Recorded, *changes, kind), {})(
        model=model,
        args=config(**arguments(job), max_length=None if method not in ("orpo", "simpo") else 128),
        train_dataset=Dataset.from_list(job["rows"]),
        processing_class=tokenizer,
        **reference,
    )
    return record(trainer, recording)


if __name__ == "__main__":
    answer_jobs(train, VERSIONS)
