"""Forward passes that training and sampling share: positions, hidden states, log-probs where needed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.models.adapters import plain

# Architectures that change logits after the head; for them the model's own forward is used.
_LOGIT_ADJUSTMENTS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token from the first real one: (B, T) bool or int -> (B, T) int64, 0 on padding."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def precision_context(precision: str, device: str) -> AbstractContextManager[object]:
    """Autocast to bf16 when asked; weights and optimiser stay in float32."""
    if precision == "bf16":
        return torch.autocast(device_type=device, dtype=torch.bfloat16)
    return nullcontext()


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Last hidden states of a model's trunk: (B, T) -> (B, T, D)."""
    trunk = plain(model).base_model
    hidden: Tensor = trunk(
        input_ids=input_ids,
        attention_mask=attention_mask.long(),
        position_ids=positions(attention_mask),
        use_cache=False,
    ).last_hidden_state
    return hidden


def token_logprobs(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    wanted: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-prob of each wanted token given those before it; the head runs on those positions alone.

    Args:
        input_ids: (B, T) int64. attention_mask: (B, T), True on real tokens.
        wanted: (B, T) bool, True on the tokens whose log-prob is wanted; the first column never is.
        temperature: logits are divided by it, as when the tokens were sampled.
        with_entropy: fill the second result (costs one more pass over the logits).
        hidden: (B, T, D) trunk output, when the caller has it already.

    Returns:
        log-probs (B, T) float32, 0 where not wanted; the distributions' entropy (B, T), likewise,
        detached (nats).
    """
    wanted = wanted.clone()
    wanted[:, 0] = False
    before = torch.zeros_like(wanted)
    before[:, :-1] = wanted[:, 1:]
    if any(getattr(model.config, name, None) not in (None, 1, 1.0) for name in _LOGIT_ADJUSTMENTS):
        full = model(
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            position_ids=positions(attention_mask),
            use_cache=False,
        ).logits
        logits = full[before]
    else:
        hidden = hidden_states(model, input_ids, attention_mask) if hidden is None else hidden
        head = plain(model).get_output_embeddings()
        logits = head(hidden[before])
    logits = logits.float()
    if temperature != 1.0:
        logits = logits / temperature
    chosen = torch.log_softmax(logits, dim=-1)  # (N, V)
    picked = chosen.gather(-1, input_ids[wanted].unsqueeze(-1)).squeeze(-1)
    logprobs = torch.zeros(input_ids.shape, dtype=torch.float32, device=input_ids.device)
    logprobs = logprobs.masked_scatter(wanted, picked)
    entropy = torch.zeros_like(logprobs, requires_grad=False)
    if with_entropy:
        with torch.no_grad():
            entropy = entropy.masked_scatter(wanted, -(chosen.exp() * chosen).sum(dim=-1))
    return logprobs, entropy
