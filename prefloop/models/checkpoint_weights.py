"""A model's weights as a checkpoint of it would hold them, for what loads them into a model of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from prefloop.models.adapters import plain


@torch.no_grad()
def checkpoint_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors by the names of the architecture's checkpoints, adapters folded in, tied ones once.

    The model itself stays as it is. Tensors that no adapter changes are its own, not copies.
    """
    inner: Any = plain(model)
    adapted = {name: module for name, module in inner.named_modules() if hasattr(module, "get_delta_weight")}
    parameters = dict(inner.named_parameters())
    aliases = {name for name, _ in inner.named_parameters(remove_duplicate=False)} - parameters.keys()
    own = tuple(f"{name}.{layer}." for name, one in adapted.items() for layer in one.adapter_layer_names)
    weights: dict[str, Tensor] = {}
    for name, tensor in inner.state_dict().items():
        if name in aliases or name.startswith(own):
            continue
        module = adapted.get(name.removesuffix(".base_layer.weight"))
        if module is not None:
            for adapter in module.active_adapters:
                tensor = tensor + module.get_delta_weight(adapter)
        weights[name.replace(".base_layer.", ".")] = tensor.detach()
    found: dict[str, Tensor] = revert_weight_conversion(inner, weights)
    return found
