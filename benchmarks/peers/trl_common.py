"""What TRL's trainers share in a comparison: their arguments, and a mixin that records them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
import trl
from clock import Clock
from recording import Noting, Recording
from transformers import AutoModelForCausalLM, AutoTokenizer

VERSIONS = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """Arguments of every trainer: the optimiser of the job's section, rows in order, nothing written."""
    section = job["section"]
    update = section["batch_size"] // section.get("minibatches", 1)
    rows = section["micro_batch_size"] or update
    return {
        "output_dir": job["scratch"],
        "learning_rate": section["learning_rate"],
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": section["adam_beta1"],
        "adam_beta2": section["adam_beta2"],
        "adam_epsilon": section["adam_eps"],
        "weight_decay": 0.0,
        "max_grad_norm": section["max_grad_norm"],
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": update // rows,
        "max_steps": job["steps"],
        "bf16": False,
        "use_cpu": not (job.get("timed") and torch.cuda.is_available()),
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "seed": 0,
        **job["peer"],
    }


def load(job: dict[str, Any]) -> tuple[Any, Any]:
    """The job's model in float32, and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(job["model"])


class Recorded:
    """Before a trainer's class: what it does goes to `recording`."""

    recording: Noting

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.recording.add(loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[misc]
        self.recording.step(norm)
        return norm


def recording_of(job: dict[str, Any]) -> Noting:
    """What watches the job's training: a clock if it is timed."""
    return Clock() if job.get("timed") else Recording()


def record(trainer: Any, recording: Noting) -> Noting:
    """Trains and returns what was recorded."""
    trainer.recording = recording
    with trainer.recording.watching(trainer.model):
        trainer.train()
    return trainer.recording
