"""Models and tokenizers small enough to train within a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prefloop.config.base import ArchitectureConfig
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.models.saving import save_model
from prefloop.training.recorder import Silent

TEXTS = [
    "What colour is the kettle?",
    "The kettle is blue.",
    "The lamp is red, I think.",
    "I cannot help with that.",
]
QUESTIONS = [f"What colour is the {thing}?" for thing in ("kettle", "lamp", "oven", "door", "mug", "bowl")]
ANSWERS = ["It is blue.", "It is red, I think.", "I cannot help with that.", "Blue."]


def tokenizer(context: int = 64) -> PreTrainedTokenizerFast:
    """A byte-level BPE with role tokens."""
    return train_tokenizer(TEXTS * 4, 320, context)


def model(
    tokens: PreTrainedTokenizerFast,
    *,
    kind: str = "llama",
    width: int = 16,
    layers: int = 1,
    kv_heads: int = 2,
    seed: int = 0,
) -> PreTrainedModel:
    """A random model that reads 64 tokens."""
    shape = ArchitectureConfig(
        model_type=kind,
        vocab_size=320,
        hidden_size=width,
        intermediate_size=2 * width,
        layers=layers,
        heads=2,
        kv_heads=1 if kind == "mistral" else kv_heads,
        context=64,
    )
    return create_model(shape, tokens, seed).eval()


def saved(folder: Path, **shape: object) -> Path:
    """A folder that holds a random model and its tokenizer."""
    tokens = tokenizer()
    save_model(model(tokens, **shape), tokens, folder)  # type: ignore[arg-type]
    return folder


class StopAfter(Silent):
    """Asks the training to end once it has logged `steps` steps; 0 never does."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.resumed_at = -1

    def resume(self, step: int) -> None:
        super().resume(step)
        self.resumed_at = step

    def stop_requested(self) -> bool:
        return bool(self.rows) and self.rows[-1]["step"] == self.steps


class StopAtCall(StopAfter):
    """Asks the training to end when it asks for the `call`-th time, wherever it stands then."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call = call

    def stop_requested(self) -> bool:
        self.call -= 1
        return self.call == 0


def sequences_in(inputs: Mapping[str, Any]) -> int:
    """How many sequences a forward pass with these keyword arguments sees; 0 for what takes no tokens."""
    if "layout" in inputs:  # end to end: prefloop.models.ragged
        return int(inputs["layout"].rows)
    ids = inputs.get("input_ids")
    return 0 if ids is None else len(ids)
