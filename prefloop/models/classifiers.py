"""Sequence classifiers on the trunk of any encoder or decoder, and their last layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from prefloop.errors import ModelError
from prefloop.models.loading import (
    UNREADABLE,
    checked_folder,
    first_line,
    fit_embeddings,
    load_tokenizer,
    prepared,
    quiet,
    require_weights,
)
from prefloop.training.noise import Key, torch_seed


def load_classifier(
    source: str, revision: str | None, trust_remote_code: bool, *, labels: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier in float32, dropout off, and its tokenizer, which pads on the right.

    Args:
        labels: outputs of a head to be made on a trunk; 0 reads a whole classifier.

    Raises:
        ModelError: it cannot be loaded, or lacks weights that it ought to hold.
    """
    folder = checked_folder(source, revision, trust_remote_code)
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer.padding_side = "right"
    head = {"num_labels": labels} if labels else {}
    try:
        with quiet():  # a trunk without a head is what is wanted; a whole one is looked at below
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                **head,
            )
    except UNREADABLE as error:
        raise ModelError(
            f"the reward model's trunk {source} could not be loaded: {first_line(error)}",
            "give a folder or hub id of an encoder or decoder with safetensors weights",
        ) from error
    model, found = loaded
    if not labels:
        require_weights(source, found["missing_keys"])
    fit_embeddings(model, tokenizer)
    return prepared(model), tokenizer


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer, which gives the scores.

    Raises:
        ModelError: the architecture names it differently.
    """
    for name in ("score", "classifier"):
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear):
            return head
        for inner in ("out_proj", "dense_out", "summary"):
            last = getattr(head, inner, None)
            if isinstance(last, nn.Linear):
                return last
    raise ModelError(f"{type(model).__name__} has no score head that prefloop knows")


def heads_of(model: PreTrainedModel) -> int:
    """How many scores a classifier gives."""
    return model.config.num_labels or 1


@torch.no_grad()
def draw_head(head: nn.Linear, keys: Sequence[Key]) -> None:
    """Draws each output's weights from its own key: std 1/sqrt(d + 1), bias 0 (Stiennon et al. 2020)."""
    for row, key in enumerate(keys):
        torch_seed(key)
        head.weight[row].normal_(0.0, 1.0 / math.sqrt(head.in_features + 1))
    if head.bias is not None:
        head.bias.zero_()


def is_causal(model: PreTrainedModel) -> bool:
    """True for a classifier on a decoder, which reads its score at the last token."""
    names = getattr(model.config, "architectures", None) or []
    return hasattr(model, "score") or any("CausalLM" in name or "LMHead" in name for name in names)
