"""Low-rank adapters (the extra `lora`): attached to train, merged to save, off for the reference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from prefloop.config.training import LoraConfig
from prefloop.errors import ConfigError
from prefloop.models.adapter_dropout import key_dropout
from prefloop.training.noise import torch_seed


def attach(model: PreTrainedModel, config: LoraConfig, *, seed: int, task: str = "CAUSAL_LM") -> Any:
    """The model with adapters to train, or the model itself when the rank is 0.

    Raises:
        ConfigError: peft is not installed, or dropout is asked of the output layer's adapter.
    """
    if not config.rank:
        return model
    try:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model
    except ImportError as error:
        raise ConfigError(
            "lora.rank is above 0, but peft is not installed", "pip install 'prefloop[lora]'"
        ) from error
    torch_seed((seed, "lora", task))
    options: dict[str, Any] = {
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": config.targets if config.targets == "all-linear" else config.targets.split(","),
        "task_type": task,
    }
    adapted = get_peft_model(model, PeftConfig(**options))
    key_dropout(adapted)
    return adapted


def merge(model: Any) -> PreTrainedModel:
    """The plain model, adapters folded into its weights."""
    if has_adapter(model):
        merged: PreTrainedModel = model.merge_and_unload()
        return merged
    return model  # type: ignore[no-any-return]


def has_adapter(model: Any) -> bool:
    """True for a model that `attach` gave adapters."""
    return hasattr(model, "merge_and_unload")


@contextmanager
def reference_mode(model: Any) -> Iterator[None]:
    """Within it an adapted model computes as the model it started from; others compute as they are."""
    if has_adapter(model):
        with model.disable_adapter():
            yield
    else:
        yield


def reference_of(model: Any) -> Any:
    """What gives reference log-probs while `model` trains: itself with the adapter off, or a frozen copy."""
    if has_adapter(model):
        return model
    reference = copy.deepcopy(model).eval()
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference


def plain(model: Any) -> PreTrainedModel:
    """The transformers model inside, for its trunk and head."""
    return model.get_base_model() if has_adapter(model) else model  # type: ignore[no-any-return]
