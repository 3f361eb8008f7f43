"""Sampling from a policy, with noise keyed by prompt so that a batch's make-up changes no draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rollout import SamplingConfig
from prefloop.data.templates import ChatEncoder, Messages
from prefloop.errors import ConfigError
from prefloop.models.forward import next_token_logits, precision_context
from prefloop.models.loading import context_length
from prefloop.rollout.decoding import STEP, Decoder, bias_of, decodes
from prefloop.rollout.drawing import draw_with_logprobs
from prefloop.rollout.prefill import prefill
from prefloop.training.noise import Key, uniforms

SAMPLED_AT_ONCE = 256
"""Completions that are sampled at once where nothing says otherwise."""
FEWEST = 16
"""Rows that a batch does not shrink below: each number of rows is code of its own, for little work."""


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

    def part(self, start: int, end: int) -> Rollouts:
        """Those from `start` to before `end`."""
        return Rollouts(**{name: entries[start:end] for name, entries in vars(self).items()})

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
        encoded = self._encoded(prompts, room)
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
        done: dict[int, tuple[list[int], list[float], bool]] = {}
        with torch.no_grad():
            decoder = Decoder(self.model, self.precision) if decodes(self.model) else None
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            noise = uniforms(key, [rows[i] for i in group], room)
            for i, result in zip(
                group, self._batch([encoded[i] for i in group], noise, decoder), strict=True
            ):
                done[i] = result
        completions = [done[i][0] for i in range(len(encoded))]
        texts = [str(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in completions]
        logprobs = [done[i][1] for i in range(len(encoded))]
        ended = [done[i][2] for i in range(len(encoded))]
        return Rollouts(encoded, completions, texts, ended, logprobs, [self.version] * len(encoded))

    def _encoded(self, prompts: Sequence[str | Messages], room: int) -> list[list[int]]:
        """Tokens of each prompt; those that follow their equal are not encoded again."""
        encoded = list[list[int]]()
        for i, prompt in enumerate(prompts):
            again = i > 0 and prompt == prompts[i - 1]
            encoded.append(encoded[-1] if again else self.encoder.prompt(prompt, room))
        return encoded

    @torch.no_grad()
    def _batch(
        self, prompts: list[list[int]], noise: Tensor, decoder: Decoder | None
    ) -> list[tuple[list[int], list[float], bool]]:
        """Completions of prompts, their tokens' log-probs, and whether they ended.

        Prompts that are equal are read once: their rows begin as copies of one. Rows that ended leave where
        fewer rows hold those that run.
        """
        device, limit = self.model.device, self.config.max_new_tokens
        different = {tuple(ids): place for place, ids in enumerate(dict.fromkeys(map(tuple, prompts)))}
        source = torch.tensor([different[tuple(ids)] for ids in prompts], device=device)
        pad = int(self.tokenizer.pad_token_id)
        stops = self.stops.to(device)
        tokens = torch.full((len(prompts), limit), pad, dtype=torch.long, device=device)
        logprobs = torch.zeros((len(prompts), limit), dtype=torch.float64, device=device)
        lengths = torch.full((len(prompts),), limit, dtype=torch.long, device=device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        alive = torch.arange(len(prompts), device=device)  # the prompt of each row that is in the batch
        running = torch.ones(len(prompts), dtype=torch.bool, device=device)  # of those, not yet ended
        noise = noise.to(device)
        room = STEP if decoder is not None else max(map(len, prompts)) + limit
        with precision_context(self.precision, device.type):
            logits, real, cache = prefill(self.model, list(different), source, pad, room)
        width = real.shape[1]
        bias = bias_of(real, limit + STEP)
        places = real.sum(dim=-1, keepdim=True) - 1
        real = torch.cat([real, real.new_ones((len(real), limit))], dim=-1)
        for step in range(limit):
            chosen, drawn = draw_with_logprobs(logits.float(), noise[alive, step], self.config)
            tokens[alive[running], step] = chosen[running]
            logprobs[alive, step] = drawn
            stopped = running & torch.isin(chosen, stops)
            lengths[alive[stopped]] = step + 1
            ended[alive[stopped]] = True
            running = running & ~stopped
            count = int(running.sum())
            if count == 0 or step + 1 == limit:
                break
            places = places + 1
            if (fewer := rows_for(count)) < len(alive):
                keep = compacted(running, fewer)
                cache.batch_select_indices(keep)
                alive, real, bias = alive[keep], real[keep], bias[keep]
                places, chosen, running = places[keep], chosen[keep], running[keep]
            with precision_context(self.precision, device.type):
                if decoder is not None:
                    bias[:, width + step] = 0.0
                    logits = decoder(chosen.unsqueeze(1), places, cache.layers, bias)  # type: ignore[arg-type]
                else:
                    logits = next_token_logits(
                        self.model,
                        input_ids=chosen.unsqueeze(1),
                        attention_mask=real[:, : width + step + 1],
                        position_ids=places,
                        past_key_values=cache,
                        use_cache=True,
                    )
        return [
            (row[:length], own[:length], bool(flag))
            for row, own, length, flag in zip(
                tokens.tolist(), logprobs.tolist(), lengths.tolist(), ended.tolist(), strict=True
            )
        ]


def rows_for(count: int) -> int:
    """Rows that a batch shrinks to when `count` of them run: 4 to 7 times a power of two, at least `FEWEST`.

    Every number of rows would do. But in bf16 oneDNN makes code for each shape of a product and keeps it:
    few numbers, the same in each batch, are made once (`python -m benchmarks.techniques shapes`).
    """
    unit = 1 << max((count - 1).bit_length() - 3, 0)
    return max(-(-count // unit) * unit, FEWEST)


def compacted(running: Tensor, size: int) -> Tensor:
    """Which row comes to each of the first `size` places, so that few rows move.

    Args:
        running: (B,) bool, at most `size` times True.

    Returns:
        (size,) int64: a running row in these places stays; running rows behind them take places of others.
    """
    order = torch.arange(len(running), device=running.device)
    behind = order[size:][running[size:]]
    order[(~running[:size]).nonzero().squeeze(-1)[: len(behind)]] = behind
    return order[:size]
