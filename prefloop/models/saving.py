"""Saving in Hugging Face format: safetensors, tokenizer, chat template, generation settings, model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from prefloop.data.templates import stop_ids


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: Mapping[str, object] | None = None,
) -> None:
    """Writes a folder that plain `from_pretrained` loads.

    Args:
        card: facts for README.md, heading -> text. Nothing that varies from run to run belongs there: the
            folder's hash decides what must run again.
    """
    stops = stop_ids(tokenizer)
    if model.can_generate():
        model.generation_config = GenerationConfig(
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            do_sample=True,
        )
    model.config.use_cache = True
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    write_card(folder, card)


def write_card(folder: Path, card: Mapping[str, object] | None) -> None:
    """Writes a model card, README.md: heading -> text; none where there is nothing to say."""
    if card:
        lines = ["---", "library_name: transformers", "---", ""]
        for heading, text in card.items():
            lines += [f"## {heading}", "", str(text), ""]
        (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
