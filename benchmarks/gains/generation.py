"""Of sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.gains.measure import Gain, compare
from prefloop.config.rollout import SamplingConfig
from prefloop.rollout import prefill, sampling
from prefloop.rollout.drawing import draw_with_logprobs


def whole_inversion(logits: Tensor, noise: Tensor) -> Tensor:
    """A draw by float64 sums over the whole vocabulary."""
    summed = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    return torch.searchsorted(summed, (noise * summed[:, -1]).unsqueeze(-1), right=True).squeeze(-1)


def draws(rounds: int) -> Iterator[Gain]:
    """Blocks of the vocabulary against all of it."""
    config = SamplingConfig()
    for rows, vocabulary in ((256, 1024), (64, 8192), (128, 32768)):
        logits = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
        noise = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert (draw_with_logprobs(logits, noise, config)[0] == whole_inversion(logits, noise)).all()
        yield compare(
            f"draws by blocks, {rows} rows of {vocabulary:,} tokens",
            partial(draw_with_logprobs, logits, noise, config),
            partial(whole_inversion, logits, noise),
            rounds,
        )


def caches(model: Any, tokenizer: Any, rows: list[dict[str, Any]], rounds: int) -> Iterator[Gain]:
    """Decoding in few operations, keys and values in place, and equal prompts read once."""
    sampler = sampling.Sampler(model, tokenizer, SamplingConfig(max_new_tokens=48))
    different = [row["prompt"] for row in rows[:256]]
    keys: list[tuple[int, ...]] = [(i,) for i in range(len(different))]

    def sampled() -> sampling.Rollouts:
        return sampler.sample(different, (0, "techniques"), keys)

    def of_few() -> sampling.Rollouts:
        return sampler.sample([prompt for prompt in different[:4] for _ in range(64)], (0, "few"), keys)

    def through_modules(work: Callable[[], sampling.Rollouts] = sampled) -> sampling.Rollouts:
        with mock.patch.object(sampling, "decodes", return_value=False):
            return work()

    def copying() -> sampling.Rollouts:
        with mock.patch.object(prefill, "roomy_cache", lambda model, _: DynamicCache(config=model.config)):
            return through_modules()

    assert sampled().completion_ids == through_modules().completion_ids == copying().completion_ids
    what = "tokens decoded in few operations (without: the model's own forward pass), 256 answers"
    yield compare(f"{what} to as many prompts", sampled, through_modules, rounds)
    yield compare(f"{what} to 4 prompts", of_few, partial(through_modules, of_few), rounds)
    yield compare(
        "keys and values in place, 256 answers, the model's own pass", through_modules, copying, rounds
    )
    one = sampling.Sampler(model, tokenizer, SamplingConfig(max_new_tokens=1))
    yield compare(
        "a prompt read once for 64 answers, their first tokens (without: 256 different prompts)",
        lambda: one.sample([prompt for prompt in different[:4] for _ in range(64)], (0, "first"), keys),
        lambda: one.sample(different, (0, "first"), keys),
        rounds,
    )


def leaving(model: Any, tokenizer: Any, rows: list[dict[str, Any]], rounds: int) -> Iterator[Gain]:
    """Rows that ended leave their batch; and whether others should take their places."""
    sampler = sampling.Sampler(model, tokenizer, SamplingConfig(max_new_tokens=96))
    prompts = [row["prompt"] for row in rows]

    def sampled(count: int = 256, size: int = 256) -> list[list[int]]:
        return sampler.sample(prompts[:count], (0, "leaving"), batch_size=size).completion_ids

    def otherwise(rows_for: Callable[[int], int]) -> list[list[int]]:
        with mock.patch.object(sampling, "rows_for", rows_for):
            return sampled()

    staying = partial(otherwise, lambda count: len(prompts))
    at_once = partial(otherwise, lambda count: count)
    assert sampled() == staying() == at_once()
    yield compare("rows that ended leave their batch, 256 answers", sampled, staying, rounds)
    yield compare(
        "batches shrink to few sizes (without: each row leaves at once), 256 answers",
        sampled,
        at_once,
        rounds,
    )
    all_at_once = partial(sampled, len(prompts), len(prompts))
    in_turn = partial(sampled, len(prompts))
    assert all_at_once() == in_turn()
    yield compare(
        f"{len(prompts):,} answers at once (without: 256 at a time), the most that refilling could gain",
        all_at_once,
        in_turn,
        rounds,
        use="dropped",
    )
