"""Fixed data, tokenizer and random models that both sides of a comparison read from one folder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.config.base import ArchitectureConfig
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.training.noise import generator

SEED = 7
CONTEXT = 128
THINGS = ("kettle", "lamp", "oven", "door", "mug", "bowl", "chair", "clock")
ASKED = ("What colour is the {}?", "How heavy is the {}, roughly?", "Where would you put a {} at home?")
ANSWERED = (
    "It is {}.",
    "I believe that it is {}, but I have not looked at it for a while.",
    "That one is {}; the others are not.",
    "{}.",
)
KINDS = ("blue", "red", "quite light", "too heavy to carry", "in the kitchen", "near the window")
HISTORY = [
    {"role": "user", "content": "Are you there?"},
    {"role": "assistant", "content": "Yes, go on."},
]


@dataclass(frozen=True)
class Material:
    """What a comparison trains.

    Attributes:
        policy, reward: folders of a causal model and of a reward model, float32, with their tokenizer.
        conversations: rows with `prompt` (messages, of one turn or three), `chosen`, `rejected`, `margin`;
            no two prompts are equal.
    """

    policy: Path
    reward: Path
    conversations: list[dict[str, Any]]


def make(folder: Path, model_type: str) -> Material:
    """Writes models of two layers, width 32, of an architecture that transformers knows."""
    rows = conversations()
    texts = [m["content"] for row in rows for part in ("prompt", "chosen", "rejected") for m in row[part]]
    tokenizer = train_tokenizer(texts, 384, CONTEXT)
    shape = ArchitectureConfig(
        model_type=model_type,
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        layers=2,
        heads=4,
        kv_heads=2,
        context=CONTEXT,
        tie_embeddings=False,
    )
    save_model(create_model(shape, tokenizer, SEED), tokenizer, folder / "policy")
    RewardModel.create(folder / "policy", seed=SEED).save(folder / "reward")
    return Material(folder / "policy", folder / "reward", rows)


def conversations() -> list[dict[str, Any]]:
    """48 preference rows; completions of 3 to some 30 tokens."""
    draw = generator((SEED, "material"))
    rows = []
    for number, (thing, asked) in enumerate(itertools.product(THINGS, ASKED)):
        for history in ([], HISTORY):
            chosen, rejected = (
                str(ANSWERED[int(draw.integers(len(ANSWERED)))]).format(KINDS[int(draw.integers(len(KINDS)))])
                for _ in range(2)
            )
            if chosen == rejected:
                rejected = f"Why do you ask about the {thing}?"
            rows.append(
                {
                    "prompt": [*history, {"role": "user", "content": asked.format(thing)}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                    "margin": (number % 4) / 4,
                }
            )
    return rows
