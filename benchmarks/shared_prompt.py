"""What encoding a prompt once for its K completions buys: a reward model's step, shared and apart.

    python -m benchmarks.shared_prompt [--steps 12] [--threads 1] [--device cpu]
        [--prompt 8 26] [--completion 10 44] [--always]

Both ways see the same random tokens in turn (A B A B ...), the shared one as `share_prompt: auto` decides.
Their losses have to agree; then the ratios of tokens and of median times are printed, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from prefloop.config.base import ArchitectureConfig
from prefloop.data.comparisons import Ranking
from prefloop.models.classifiers import draw_head, score_head
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.models.reward_model import RewardModel
from prefloop.models.shared_prompt import Tree, can_share, tree_scores, trees_of
from prefloop.objectives.bradley_terry import ranking_loss
from prefloop.training.reward import EncodedRanking

VOCABULARY = 1024


def model_of(asked: argparse.Namespace) -> RewardModel:
    """A random reward model of the embedded world's shape."""
    shape = ArchitectureConfig(
        vocab_size=VOCABULARY,
        hidden_size=asked.width,
        intermediate_size=2 * asked.width,
        layers=asked.layers,
        heads=4,
        kv_heads=4,
        context=asked.prompt[1] + asked.completion[1],
    )
    tokenizer = train_tokenizer(["The kettle is blue.", "What colour is the lamp?"], 320, shape.context)
    config = create_model(shape, tokenizer, 0).config
    config.vocab_size, config.num_labels, config.pad_token_id = VOCABULARY, 1, tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_config(config)
    draw_head(score_head(model), [(0,)])
    return RewardModel(model.to(asked.device), tokenizer)


def rows_of(asked: argparse.Namespace, step: int) -> list[EncodedRanking]:
    """Random rankings of the asked lengths; tokens from 10 on are no special ones."""
    rng = np.random.default_rng(step)
    rows = []
    for _ in range(asked.prompts):
        prompt = rng.integers(10, VOCABULARY, rng.integers(asked.prompt[0], asked.prompt[1] + 1)).tolist()
        tails = [
            rng.integers(10, VOCABULARY, rng.integers(asked.completion[0], asked.completion[1] + 1)).tolist()
            for _ in range(asked.completions)
        ]
        ranks = list(range(asked.completions))
        rows.append(EncodedRanking(Ranking("", [""] * len(ranks), ranks), [prompt + tail for tail in tails]))
    return rows


def step(
    model: RewardModel, rows: list[EncodedRanking], forest: list[list[Tree]] | None, device: str
) -> tuple[float, float]:
    """Seconds of a forward and backward pass, and the loss."""
    model.zero_grad(set_to_none=True)
    started = time.perf_counter()
    if forest is None:
        scores = model([ids for row in rows for ids in row.sequences])[:, 0]
    else:
        trees = [tree for trees in forest for tree in trees]
        scores = tree_scores(model.model, trees, int(model.tokenizer.pad_token_id), "fp32")[:, 0]
    parts = scores.split([len(row.sequences) for row in rows])
    loss = torch.stack(
        [ranking_loss(own, row.ranking.ranks).loss for own, row in zip(parts, rows, strict=True)]
    ).mean()
    loss.backward()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, float(loss.detach())


def main() -> None:
    """Runs both ways and prints the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in (("steps", 12), ("threads", 1), ("prompts", 16), ("completions", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompt", type=int, nargs=2, default=[8, 26], help="least and most tokens")
    parser.add_argument("--completion", type=int, nargs=2, default=[10, 44], help="least and most tokens")
    parser.add_argument("--always", action="store_true", help="share even where it does not pay")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = model_of(asked)
    assert can_share(model.model, int(model.tokenizer.pad_token_id))
    times: dict[str, list[float]] = {"shared": [], "apart": []}
    tokens = {"shared": 0, "apart": 0}
    for number in range(asked.steps):
        rows = rows_of(asked, number)
        forest = [trees_of(row.sequences, asked.width, always=asked.always) for row in rows]
        tokens["shared"] += sum(len(tree) for trees in forest for tree in trees)
        tokens["apart"] += sum(len(ids) for row in rows for ids in row.sequences)
        losses = []
        for name in ("shared", "apart"):
            seconds, loss = step(model, rows, forest if name == "shared" else None, asked.device)
            times[name].append(seconds)
            losses.append(loss)
        assert abs(losses[0] - losses[1]) < 1e-4 * max(abs(losses[1]), 1.0), losses
    medians = {name: statistics.median(values[2:]) for name, values in times.items()}
    print(
        json.dumps(
            {
                **{f"{name}_ms": round(1000 * value, 1) for name, value in medians.items()},
                "tokens": round(tokens["shared"] / tokens["apart"], 3),
                "time": round(medians["shared"] / medians["apart"], 3),
                "threads": asked.threads,
                "load": round(os.getloadavg()[0], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
