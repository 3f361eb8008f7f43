"""Reward models: a trunk of any architecture with one score, its own tokenizer and normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from prefloop.data.batching import length_groups, pad
from prefloop.data.templates import Message, as_messages, render
from prefloop.errors import ModelError
from prefloop.files import read_json, write_json
from prefloop.models.forward import positions, precision_context
from prefloop.models.loading import (
    UNREADABLE,
    context_length,
    first_line,
    fit_embeddings,
    hub_options,
    load_tokenizer,
    quiet,
    require_weights,
    to_device,
    turn_dropout_off,
)
from prefloop.training.noise import torch_seed

_NORMALISATION = "reward_normalisation.json"
Prompt = str | Sequence[Message]


class RewardModel(nn.Module):
    """Scores a completion in the light of its prompt.

    Args:
        model: sequence classifier with one label. tokenizer: its tokenizer.
        mean, std: of raw scores over completions of the SFT policy; `score` gives (raw - mean) / std.
        precision: "fp32" or "bf16".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mean: float = 0.0,
        std: float = 1.0,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.mean, self.std, self.precision = mean, std, precision
        self.encoder_only = not getattr(model.config, "is_decoder", False) and not _is_causal(model)
        self.max_length = min(context_length(model), int(tokenizer.model_max_length))
        if self.encoder_only:
            # BERT-like position tables; what lies beyond is cut at the beginning, never at the answer.
            self.max_length = min(self.max_length, 512)
            tokenizer.truncation_side = "left"

    def encode(self, prompt: Prompt, completion: Prompt, max_length: int = 0) -> list[int]:
        """Tokens of the whole conversation; a longer one loses its beginning."""
        messages = [*as_messages(prompt), *as_messages(completion, "assistant")]
        text = render(self.tokenizer, messages).rstrip("\n")
        limit = min(max_length or self.max_length, self.max_length)
        if self.encoder_only:
            # It expects the special tokens around a text that its tokenizer puts there.
            return list(self.tokenizer(text, truncation=True, max_length=limit)["input_ids"])
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][-limit:])

    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores of encoded conversations: (B,) float32, read at the last real token of a decoder."""
        groups = length_groups([len(ids) for ids in sequences], self.model.device.type)
        scores = torch.cat([self._scores([sequences[i] for i in group]) for group in groups])
        place = torch.tensor([i for group in groups for i in group], device=scores.device)
        return torch.zeros_like(scores).index_copy(0, place, scores)

    def _scores(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        device = self.model.device
        batch = pad(sequences, [[True] * len(ids) for ids in sequences], int(self.tokenizer.pad_token_id))
        batch = batch.to(device.type)
        extra = (
            {} if self.encoder_only else {"position_ids": positions(batch.attention_mask), "use_cache": False}
        )
        with precision_context(self.precision, device.type):
            logits = self.model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), **extra
            ).logits
        scores: Tensor = logits.squeeze(-1).float()
        return scores

    @torch.no_grad()
    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], batch_size: int = 128
    ) -> Tensor:
        """Normalised scores of completions: (B,) float32 on the CPU.

        Raises:
            ModelError: a score is NaN or infinite.
        """
        encoded = [self.encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
        scores = torch.zeros(len(encoded))
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            scores[group] = self([encoded[i] for i in group]).cpu()
        if not torch.isfinite(scores).all():
            raise ModelError(
                "the reward model gave a NaN or infinite score", "train it again at a lower learning rate"
            )
        return (scores - self.mean) / self.std

    def save(self, folder: Path) -> None:
        """Writes a folder that AutoModelForSequenceClassification loads, with the normalisation beside it."""
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)
        write_json(folder / _NORMALISATION, {"mean": self.mean, "std": self.std})

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Reads what `save` wrote.

        Raises:
            ModelError: no such model; DataError: the normalisation is missing.
        """
        model, tokenizer = _load_classifier(str(folder), None, trust_remote_code, complete=True)
        normalisation = read_json(Path(folder) / _NORMALISATION)
        return cls(
            to_device(model, device),
            tokenizer,
            mean=normalisation["mean"],
            std=normalisation["std"],
            precision=precision,
        ).eval()

    @classmethod
    def create(
        cls,
        trunk: str | Path,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "fp32",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """A reward model on the trunk of any encoder or decoder; the head has std 1/sqrt(d + 1), bias 0."""
        # Weights that the trunk lacks (an encoder's pooler, a row for a pad token) are drawn while it loads.
        torch_seed((seed, "reward", "trunk"))
        model, tokenizer = _load_classifier(str(trunk), revision, trust_remote_code, complete=False)
        head = score_head(model)
        torch_seed((seed, "reward", "head"))
        with torch.no_grad():
            head.weight.normal_(0.0, 1.0 / math.sqrt(head.in_features + 1))
            if head.bias is not None:
                head.bias.zero_()
        return cls(to_device(model, device), tokenizer, precision=precision)


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer, which gives the score.

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


def _is_causal(model: PreTrainedModel) -> bool:
    names = getattr(model.config, "architectures", None) or []
    return hasattr(model, "score") or any("CausalLM" in name or "LMHead" in name for name in names)


def _load_classifier(
    source: str, revision: str | None, trust_remote_code: bool, *, complete: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options = hub_options(source, revision, trust_remote_code)
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    tokenizer.padding_side = "right"
    try:
        with quiet():  # a trunk without a head is what is wanted; `complete` looks at what is missing
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                source,
                num_labels=1,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except UNREADABLE as error:
        raise ModelError(
            f"the reward model's trunk {source} could not be loaded: {first_line(error)}",
            "give a folder or hub id of an encoder or decoder with safetensors weights",
        ) from error
    model, found = loaded
    if complete:
        require_weights(source, found["missing_keys"])
    fit_embeddings(model, tokenizer)
    return turn_dropout_off(model), tokenizer
