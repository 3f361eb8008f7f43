"""Making a small model and its tokenizer from a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prefloop.config.base import ArchitectureConfig
from prefloop.data.default_templates import END, PAD, ROLE_TEMPLATE, ROLE_TOKENS
from prefloop.errors import ConfigError, ModelError
from prefloop.models.loading import prepared
from prefloop.training.noise import torch_seed


def train_tokenizer(texts: Iterable[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with role tokens, an end token, a pad token of its own and a chat template.

    Role tokens found in the texts stay whole. Training is deterministic.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(ROLE_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without_roles(text) for text in texts), trainer)
    return with_roles(tokenizer, context)


def with_roles(tokenizer: Tokenizer, context: int, **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer whose vocabulary holds `ROLE_TOKENS`, as transformers takes it: with end and pad tokens, a
    chat template, and padding on the left.

    Args:
        context: longest sequence (tokens). options: further ones of `PreTrainedTokenizerFast`.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[token for token in ROLE_TOKENS if token not in (END, PAD)],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **options,
    )
    fast.chat_template = ROLE_TEMPLATE
    fast.padding_side = "left"
    return fast


def create_model(
    config: ArchitectureConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> PreTrainedModel:
    """A randomly initialised causal model of the configured shape.

    Raises:
        ConfigError: transformers knows no such model type. ModelError: the shape does not fit the type.
    """
    try:
        model_config = AutoConfig.for_model(config.model_type, **_shape(config, tokenizer))
    except ValueError as error:
        raise ConfigError(
            f"base.architecture.model_type {config.model_type!r} is unknown to transformers",
            "llama, qwen3, gemma3_text, gpt2 and mistral are among those it knows",
        ) from error
    torch_seed((seed, "base", "init"))
    try:
        return prepared(AutoModelForCausalLM.from_config(model_config))
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelError(f"no {config.model_type} can be made of base.architecture: {error}") from error


def _shape(config: ArchitectureConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    # Rounded up so that matrix products stay aligned.
    vocab = -(-len(tokenizer) // 64) * 64
    shape: dict[str, Any] = {
        "vocab_size": vocab,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    if config.model_type == "gpt2":
        shape["n_inner"] = config.intermediate_size
        del shape["intermediate_size"], shape["num_key_value_heads"]
    else:
        shape["head_dim"] = config.hidden_size // config.heads
    return shape


def _without_roles(text: str) -> str:
    for token in ROLE_TOKENS:
        text = text.replace(token, " ")
    return text
