"""Sampling from a policy, with noise keyed by prompt so that a batch's make-up changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rollout import SamplingConfig
from prefloop.data.templates import ChatEncoder, Messages
from prefloop.errors import ConfigError
from prefloop.models.forward import positions, precision_context
from prefloop.models.loading import context_length
from prefloop.training.noise import Key, uniforms

SAMPLED_AT_ONCE = 256
"""Completions that are sampled at once where nothing says otherwise."""
BLOCK = 128
"""Tokens of the vocabulary whose weights are summed before a draw looks for its token among them."""


@dataclass
class Rollouts:
    """Sampled completions, one an entry.

    Attributes:
        prompt_ids, completion_ids: tokens; a completion holds its end token if it ended.
        texts: completions without special tokens.
        ended: True where the policy wrote an end token itself.
        logprobs: of each completion's tokens as the engine drew them (nats): at the temperature of sampling,
            before the nucleus cuts; a greedy draw was certain, 0.
        versions: of the weights that wrote each completion, as `Engine.update` was told.
    """

    prompt_ids: list[list[int]] = field(default_factory=list)
    completion_ids: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each completion."""
        return [len(ids) for ids in self.completion_ids]

    def extend(self, other: Rollouts) -> None:
        self.prompt_ids += other.prompt_ids
        self.completion_ids += other.completion_ids
        self.texts += other.texts
        self.ended += other.ended
        self.logprobs += other.logprobs
        self.versions += other.versions


def prompt_encoder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: SamplingConfig
) -> ChatEncoder:
    """What turns prompts into the tokens that a model continues.

    Raises:
        ConfigError: the longest completion fills the model's context.
    """
    context = context_length(model)
    if config.max_new_tokens >= context:
        raise ConfigError(
            f"max_new_tokens {config.max_new_tokens} leaves no room for a prompt in {context} tokens",
            "lower sampling.max_new_tokens",
        )
    return ChatEncoder(tokenizer, context)


class Sampler:
    """The built-in engine: samples from one model, which it holds and does not copy.

    Args:
        model: causal language model; its weights may change between calls.
        tokenizer: pads on the left.
        config: length, temperature, nucleus.
        precision: "fp32" or "bf16".

    Attributes:
        version: of the weights, as `update` was told.

    Raises:
        ConfigError: the longest completion fills the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: SamplingConfig,
        precision: str = "fp32",
    ) -> None:
        self.model, self.tokenizer, self.config, self.precision = model, tokenizer, config, precision
        self.encoder = prompt_encoder(model, tokenizer, config)
        self.stops = torch.tensor(self.encoder.stops)
        self.version = 0

    def update(self, model: PreTrainedModel, version: int) -> None:
        """Notes the version: the weights are the model's own."""
        self.model, self.version = model, version

    def close(self) -> None:
        """Nothing to give back."""

    def sample(
        self,
        prompts: Sequence[str | Messages],
        key: Key,
        rows: Sequence[Key] | None = None,
        batch_size: int = 0,
    ) -> Rollouts:
        """One completion a prompt.

        Args:
            prompts: strings (one user turn) or messages.
            key: what the draws are for, such as (seed, "ppo", step).
            rows: one key a prompt, such as (prompt index, sample index); the place in the list by default.
            batch_size: completions sampled at once, 0: `SAMPLED_AT_ONCE`. Similar lengths go together; the
                order of the result is the prompts'.
        """
        batch_size = batch_size or SAMPLED_AT_ONCE
        rows = [(i,) for i in range(len(prompts))] if rows is None else rows
        room = self.config.max_new_tokens
        encoded = [self.encoder.prompt(prompt, room) for prompt in prompts]
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
        done: dict[int, tuple[list[int], list[float], bool]] = {}
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            noise = uniforms(key, [rows[i] for i in group], room)
            for i, result in zip(group, self._batch([encoded[i] for i in group], noise), strict=True):
                done[i] = result
        completions = [done[i][0] for i in range(len(encoded))]
        texts = [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in completions]
        logprobs = [done[i][1] for i in range(len(encoded))]
        ended = [done[i][2] for i in range(len(encoded))]
        return Rollouts(encoded, completions, texts, ended, logprobs, [self.version] * len(encoded))

    @torch.no_grad()
    def _batch(self, prompts: list[list[int]], noise: Tensor) -> list[tuple[list[int], list[float], bool]]:
        """Completions of left-padded prompts, their tokens' log-probs, and whether they ended.

        Rows that ended leave the batch once half of it has.
        """
        device = self.model.device
        width = max(len(ids) for ids in prompts)
        pad = int(self.tokenizer.pad_token_id)
        input_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=device)
        attention = torch.tensor(
            [[False] * (width - len(ids)) + [True] * len(ids) for ids in prompts], device=device
        )
        stops = self.stops.to(device)
        limit = self.config.max_new_tokens
        tokens = torch.full((len(prompts), limit), pad, dtype=torch.long, device=device)
        logprobs = torch.zeros((len(prompts), limit), dtype=torch.float64, device=device)
        lengths = torch.full((len(prompts),), limit, dtype=torch.long, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        alive = torch.arange(len(prompts), device=device)  # rows still in the batch, in order
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)  # of those, not yet ended
        cache = DynamicCache(config=self.model.config)
        noise = noise.to(device)
        step_ids, step_positions = input_ids, positions(attention)
        for step in range(limit):
            with precision_context(self.precision, device.type):
                logits = self.model(
                    input_ids=step_ids,
                    attention_mask=attention.long(),
                    position_ids=step_positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
            chosen, drawn = draw_with_logprobs(logits.float(), noise[alive, step], self.config)
            tokens[alive[running], step] = chosen[running]
            logprobs[alive, step] = drawn
            stopped = running & torch.isin(chosen, stops)
            lengths[alive[stopped]] = step + 1
            ended[alive[stopped]] = True
            running = running & ~stopped
            count = int(running.sum())
            if count == 0:
                break
            attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
            step_positions = step_positions[:, -1:] + 1
            if count <= len(alive) // 2:
                keep = running.nonzero().squeeze(-1)
                cache.batch_select_indices(keep)
                alive, attention, step_positions = alive[keep], attention[keep], step_positions[keep]
                chosen, running = chosen[keep], running[keep]
            step_ids = chosen.unsqueeze(1)
        return [
            (row[:length], own[:length], bool(flag))
            for row, own, length, flag in zip(
                tokens.tolist(), logprobs.tolist(), lengths.tolist(), ended.tolist(), strict=True
            )
        ]


def draw(logits: Tensor, noise: Tensor, config: SamplingConfig) -> Tensor:
    """The tokens of `draw_with_logprobs`."""
    return draw_with_logprobs(logits, noise, config)[0]


def draw_with_logprobs(logits: Tensor, noise: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Samples one token a row by inverting the distribution function at a uniform draw.

    Args:
        logits: (B, V) float32. noise: (B,) float64 in [0, 1).

    Returns:
        Tokens (B,) int64; temperature 0 takes the most likely one. Their log-probs (B,) float64 at that
        temperature, before the nucleus cuts; 0 at temperature 0.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1), torch.zeros_like(logits[:, 0], dtype=torch.float64)
    scaled = logits / config.temperature if config.temperature != 1 else logits
    top = scaled.amax(dim=-1, keepdim=True)
    weights = (scaled - top).exp_()  # float32: each within 1e-7 of what it should be; their sums are not
    tokens = _inverted(_nucleus(weights, config.top_p) if config.top_p < 1 else weights, noise)
    total = weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    return tokens.squeeze(-1), ((scaled - top).gather(-1, tokens).double() - total.log()).squeeze(-1)


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Weights (B, V) with 0 for what the nucleus leaves out."""
    ordered, indices = weights.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1, dtype=torch.float64)
    # A token stays while the mass before it is below top_p; the first always does.
    outside = (before - ordered) >= top_p * before[:, -1:]
    return torch.zeros_like(weights).scatter(-1, indices, ordered.masked_fill(outside, 0.0))


def _inverted(weights: Tensor, noise: Tensor) -> Tensor:
    """The first token whose cumulative weight exceeds the noise's share of all: (B, 1) int64.

    First the block of tokens is found, then the token within it: sums of blocks are one pass over the
    vocabulary, and cumulative sums in float64, which cost several, are taken of a block alone.

    Args:
        weights: (B, V) float32, at least 0; noise: (B,) float64 in [0, 1).
    """
    size = weights.shape[-1]
    blocks = nn.functional.pad(weights, (0, -size % BLOCK)).unflatten(-1, (-1, BLOCK))
    ends = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target = noise.to(ends.dtype).unsqueeze(-1) * ends[:, -1:]
    # An index whose cumulative weight is the first to exceed the target never has weight 0. (The product
    # with a share just below 1 may round up to the whole.)
    whole = ends[:, -1:].contiguous()
    last = torch.searchsorted(ends, whole).clamp(max=ends.shape[-1] - 1)
    block = torch.minimum(torch.searchsorted(ends, target, right=True), last)
    start = torch.where(block > 0, ends.gather(-1, (block - 1).clamp(min=0)), 0.0)
    own = blocks.gather(1, block.unsqueeze(-1).expand(-1, -1, BLOCK)).squeeze(1)
    own = own.cumsum(dim=-1, dtype=torch.float64)
    # Within a block sums may round otherwise; what is left of the target stays below all of it.
    place = torch.searchsorted(own, torch.minimum(target - start, own[:, -1:] * (1 - 2**-52)), right=True)
    return (block * BLOCK + place).clamp(max=size - 1)
