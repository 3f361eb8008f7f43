"""What groups of similar length buy where rows are padded: a DPO step on the help desk's rankings.

    python -m benchmarks.length_groups [--steps 12] [--threads 1]

Both ways see the same rows in turn (A B A B ...). Their losses have to agree; then the ratio of the median
times is printed, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.base import ArchitectureConfig
from prefloop.config.dpo import DPOConfig
from prefloop.data import batching
from prefloop.data.comparisons import rankings
from prefloop.models import forward
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.training.direct import policy_pairs
from prefloop.training.dpo import dpo_part
from prefloop.training.pairs import EncodedComparison, encode_comparisons
from prefloop.training.reference import reference_logprobs
from prefloop.world import build
from prefloop.world.facts import World

SHAPE = ArchitectureConfig(
    vocab_size=1024, hidden_size=128, intermediate_size=256, layers=3, heads=4, kv_heads=4, context=128
)
ONE_GROUP = {"cpu": 10**9, "cuda": 10**9}
PROMPTS = 16


def step(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: list[EncodedComparison],
    reference: list[Tensor],
    config: DPOConfig,
) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and the loss."""
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    pairs = sum(len(comparison.pairs) for comparison in comparisons)
    under = policy_pairs(model, tokenizer, comparisons, "fp32")
    part = dpo_part(reference, config)(under, range(len(comparisons)), pairs)
    part.loss.backward()
    return time.perf_counter() - started, float(part.loss.detach())


def main() -> None:
    """Runs both ways and prints the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    world = World.make(0)
    rows = list(build.preferences(world, PROMPTS * asked.steps, 4, 0, None))
    texts = [row["text"] for row in build.pretraining(world, 2000, 0)]
    tokenizer = train_tokenizer(texts, SHAPE.vocab_size, SHAPE.context)
    model = create_model(SHAPE, tokenizer, 0)
    config = DPOConfig(max_length=96)
    comparisons, _ = encode_comparisons(rankings(rows)[0], tokenizer, config)
    reference = reference_logprobs(model, tokenizer, comparisons, "fp32")
    times: dict[str, list[float]] = {"grouped": [], "whole": []}
    # As on a GPU, or for a model with windows of attention: rows are not laid end to end.
    padded = mock.patch.object(forward, "reads_flat", return_value=False)
    padded.start()
    for start in range(0, len(comparisons), PROMPTS):
        chosen = comparisons[start : start + PROMPTS], reference[start : start + PROMPTS]
        seconds, grouped = step(model, tokenizer, *chosen, config)
        times["grouped"].append(seconds)
        with mock.patch.object(batching, "GROUP_COST", ONE_GROUP):
            seconds, whole = step(model, tokenizer, *chosen, config)
        times["whole"].append(seconds)
        assert abs(grouped - whole) < 1e-4 * max(abs(whole), 1.0), (grouped, whole)
    padded.stop()
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(
        json.dumps(
            {
                **{f"{name}_ms": round(1000 * value, 1) for name, value in medians.items()},
                "ratio": round(medians["whole"] / medians["grouped"], 2),
                "threads": asked.threads,
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
