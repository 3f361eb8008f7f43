"""The knobs that every training stage shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefloop.config.parse import at_least, between


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (needs the extra `lora`); merged into the weights when the stage saves.

    Attributes:
        rank: rank of the update; 0 trains every weight.
        alpha: scale of the update (the update is multiplied by alpha / rank).
        dropout: probability with which a feature of the adapter's input is dropped in training.
        targets: module names, or "all-linear".
    """

    rank: int = 0
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = "all-linear"

    def __post_init__(self) -> None:
        at_least("rank", self.rank, 0)
        between("dropout", self.dropout, 0, 1)


@dataclass(frozen=True)
class TrainingConfig:
    """The optimiser, its schedule, and the batch.

    Attributes:
        optimizer: "adamw", or "muon" for the hidden matrices, beside AdamW for everything else.
        learning_rate: peak learning rate.
        schedule: shape after warm-up; "linear" and "cosine" end at 0.
        warmup_ratio: share of all steps in which the rate rises from 0.
        weight_decay: decoupled weight decay, on matrices only.
        adam_beta1, adam_beta2, adam_eps: AdamW's constants; Muon has none to set.
        max_grad_norm: gradients are scaled down to this global norm; 0 turns clipping off.
        epochs: passes over the data.
        steps: optimiser steps; 0 takes `epochs`.
        batch_size: examples an optimiser step (rows, pairs or rollouts: the stage's docs say which).
        micro_batch_size: examples a forward pass; 0 is the whole batch. Gradients add up to the same step.
        max_length: longest prompt plus completion (tokens).
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        threads: CPU threads of this stage; 0 takes `compute.threads`. Stages that run side by side do best
            with a share of the cores each.
        precision: "fp32" or "bf16"; empty takes what `compute.precision` gives.
        lora: low-rank adapters.
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-4
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    max_grad_norm: float = 1.0
    epochs: int = 1
    steps: int = 0
    batch_size: int = 32
    micro_batch_size: int = 0
    max_length: int = 512
    gradient_checkpointing: bool = False
    threads: int = 0
    precision: Literal["", "fp32", "bf16"] = ""
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        at_least("learning_rate", self.learning_rate, 0, strict=True)
        between("warmup_ratio", self.warmup_ratio, 0, 1)
        at_least("weight_decay", self.weight_decay, 0)
        at_least("max_grad_norm", self.max_grad_norm, 0)
        at_least("epochs", self.epochs, 1)
        at_least("steps", self.steps, 0)
        at_least("batch_size", self.batch_size, 1)
        at_least("micro_batch_size", self.micro_batch_size, 0)
        at_least("max_length", self.max_length, 2)
        at_least("threads", self.threads, 0)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}"
            )
