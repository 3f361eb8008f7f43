"""Which weights of a model are hidden matrices: they take hidden features to hidden features.

What an optimiser of matrices may move (`prefloop.training.muon`); everything else is a table of embeddings, a
head, a vector, or an adapter.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefloop.models.adapters import has_adapter


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """The hidden matrices that train, of each transformers model in a module, in the order of its parameters.

    They are weights of the linear layers in a model's trunk, (R, C), and its experts' stacks of them,
    (K, R, C). These are not: embeddings; heads (the output layer, scores, values), which stand outside of the
    trunk, and routers, which are heads over experts; a matrix of a single row or column; anything of a model
    with adapters, whose matrices are factors of an update, orthogonal or not, and train with heads alone.
    """
    adapted = {part for wrapper in module.modules() if has_adapter(wrapper) for part in wrapper.modules()}
    found, others = set[nn.Parameter](), set[nn.Parameter]()
    for model in module.modules():
        if not isinstance(model, PreTrainedModel) or model in adapted:
            continue
        for name, part in model.base_model.named_modules():
            found.update(p for p in part.parameters(recurse=False) if _is_hidden(name, part, p))
        kept = [part for part in model.modules() if isinstance(part, nn.Embedding)]
        # A model within another has its output layer in the other's trunk.
        if (head := model.get_output_embeddings()) is not None:
            kept.append(head)
        others.update(p for part in kept for p in part.parameters())
    return [p for p in module.parameters() if p.requires_grad and p in found and p not in others]


def _is_hidden(name: str, part: nn.Module, parameter: Tensor) -> bool:
    """True for a hidden matrix that a part of a trunk, by its name there, holds itself."""
    kind = type(part).__name__
    if isinstance(part, (nn.Linear, Conv1D)):
        matrices = parameter.ndim == 2 and "router" not in name.lower()
    else:
        matrices = parameter.ndim == 3 and "expert" in kind.lower()
    return matrices and min(parameter.shape[-2:]) > 1
