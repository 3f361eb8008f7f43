"""The base model: pre-trained here from a configuration, or taken from a folder or the hub."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefloop.config.parse import at_least
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class ArchitectureConfig:
    """A small decoder made from a configuration (used when `base.model` is empty).

    Attributes:
        model_type: any causal architecture that transformers knows by name, such as qwen3, llama, gpt2.
        vocab_size: size of the byte-level BPE trained on the pre-training text, special tokens included.
        hidden_size, intermediate_size, layers, heads, kv_heads: widths and counts.
        context: longest sequence (tokens).
        tie_embeddings: share input and output embeddings.
    """

    model_type: str = "qwen3"
    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 4
    context: int = 128
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        at_least("vocab_size", self.vocab_size, 300)
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")


@dataclass(frozen=True)
class BaseConfig(TrainingConfig):
    """Section `base`. The training knobs apply only when `model` is empty.

    Attributes:
        model: hub id or folder of a causal language model; empty makes one from `architecture`.
        revision: branch, tag or commit on the hub; resolved to a commit and recorded.
        architecture: the model to make and pre-train.
        random_weights: with `model`, take its configuration and tokenizer but random weights (for trials).
    """

    model: str = ""
    revision: str = "main"
    architecture: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    random_weights: bool = False
