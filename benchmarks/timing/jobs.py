"""What either side of a timed training is told: the section, and how the peer is tuned."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.alongside import offline, on_policy
from benchmarks.alongside.rows import GRPO
from benchmarks.alongside.rows import ROWS as COMPARED
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Row
from benchmarks.timing.sizes import SAMPLING, Lengths

RATE = 1e-4
"""Moves the losses of a few steps; rollout batches keep a policy whose lengths stay as they are."""
COMPARED_RATE = 1e-5
"""Of comparisons on given rollouts: at 1e-4 four steps amplify rounding beyond the limit of a row."""

GROUP: dict[str, int] = {"grpo": 8, "rloo": 4}
PPO: dict[str, Any] = {"inner_epochs": 2, "minibatches": 2, "kl_coef": 0.05, "max_grad_norm": 0.0}

COMPARISONS = {
    "grpo": "grpo",
    "rloo": "rloo",
    "ppo": "ppo, completions of one length",
}
"""Methods that sample: the row of benchmarks/parity in which both sides learn from given rollouts."""

AS_IT_COMES = 8
"""Rows of a forward pass by default (transformers' `per_device_train_batch_size`)."""


def section(method: str, lengths: Lengths, steps: int) -> dict[str, Any]:
    """The whole section of prefloop's configuration."""
    common = {"max_length": lengths.context, "batch_size": lengths.rows(method), "steps": steps}
    row = Row(method, method, common)
    if method not in SAMPLING:
        apart = {"centering": 0.0} if method == "reward" else {}
        return offline.section(row, steps) | {"learning_rate": RATE} | apart
    whole = on_policy.SECTION | common | {"learning_rate": 1e-6, "inner_epochs": 1}
    if method == "ppo":
        return whole | PPO
    kl = {"kl_coef": 0.04, "kl_in": "loss"} if method == "grpo" else {"kl_coef": 0.03}
    return whole | {"group_size": GROUP[method]} | kl


def peer_arguments(method: str, rows: int, precision: str, *, tuned: bool) -> dict[str, Any]:
    """Arguments of TRL's configuration, over those that a comparison has (peers/trl_common.py).

    As it comes: its defaults but for what has to be equal on both sides. KTO's whole batch is one forward
    pass in either case: its reference point is a micro-batch's, so another size would be another loss. PPO's
    is a minibatch, in slices of `per_device_train_batch_size` rows at most: as the whole batch, no limit.
    With `gradient_accumulation_steps` above 1 it steps once in that many slices, across minibatches too.
    """
    at_once = rows if tuned or method in ("kto", "ppo") else min(AS_IT_COMES, rows)
    given: dict[str, Any] = {
        "bf16": precision == "bf16",
        "logging_strategy": "steps",
        "logging_steps": 1,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": rows // at_once,
        "gradient_checkpointing": not tuned,
    }
    if tuned:
        given["dataloader_pin_memory"] = torch.cuda.is_available()
        if method in ("dpo", "kto"):
            given |= {"precompute_ref_log_probs": True, "precompute_ref_batch_size": rows}
    return given | (GRPO if method == "grpo" else {})


def timed(side: Side, lengths: Lengths, *, tuned: bool) -> dict[str, Any]:
    """A peer script's job."""
    method = side.row.method
    peer = peer_arguments(method, side.section["batch_size"], side.precision, tuned=tuned)
    about = {"timed": True, "tuned": tuned, "peer": peer, "options": [], "longest": lengths.completion[2]}
    if method not in SAMPLING:
        return offline.job(side) | about
    return {
        "name": side.row.name,
        "method": method,
        "model": str(side.material.policy),
        "reward": str(side.material.reward),
        "prompts": on_policy.prompts_in_order(side),
        "steps": side.section["steps"],
        "section": side.section,
        "scratch": str(side.scratch / "peer"),
        **about,
    }


def compared(method: str, lengths: Lengths) -> Row:
    """The comparison on given rollouts that a timed training of a method that samples has to pass."""
    row = next(row for row in COMPARED if row.name == COMPARISONS[method])
    return Row(
        f"{method} on given rollouts",
        method,
        row.section | {"max_length": lengths.context, "learning_rate": COMPARED_RATE},
        row.peer,
        row.options,
        row.differs,
        row.why,
        row.scale,
    )
