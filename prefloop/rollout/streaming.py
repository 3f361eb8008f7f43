"""One completion, handed over as it is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rollout import SamplingConfig
from prefloop.data.templates import ChatEncoder, Message
from prefloop.models.forward import next_token_logits, precision_context
from prefloop.models.loading import context_length
from prefloop.rollout.drawing import draw
from prefloop.training.noise import Key, uniforms


@torch.no_grad()
def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[Message],
    config: SamplingConfig,
    key: Key,
    precision: str = "fp32",
) -> Iterator[str]:
    """Yields one completion's text in pieces; together they are what `Sampler.sample` gives for the same key.

    Args:
        prompt: a string (one user turn) or messages; one too long for the context loses its beginning.
        key: what the draws are for; the first prompt of a batch sampled under it gets the same ones.
    """
    encoder = ChatEncoder(tokenizer, context_length(model))
    ids = encoder.prompt(prompt, config.max_new_tokens)
    noise = uniforms(key, [(0,)], config.max_new_tokens)
    device = model.device
    cache = DynamicCache(config=model.config)
    step_ids = torch.tensor([ids], device=device)
    written: list[int] = []
    shown = ""
    for step in range(config.max_new_tokens):
        with precision_context(precision, device.type):
            logits = next_token_logits(model, input_ids=step_ids, past_key_values=cache, use_cache=True)
        token = draw(logits.float(), noise[:, step].to(device), config)
        if int(token) in encoder.stops:
            break
        written.append(int(token))
        text = str(tokenizer.decode(written, skip_special_tokens=True))
        # A character of several bytes is shown once its last byte is there.
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
        step_ids = token.unsqueeze(0)
    rest = str(tokenizer.decode(written, skip_special_tokens=True))[len(shown) :]
    if rest:
        yield rest
