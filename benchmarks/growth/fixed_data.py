"""Steps of trainings on fixed data, SFT and DPO, against sequence length, batch and model size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.growth import shapes
from benchmarks.growth.curve import Curve
from benchmarks.growth.stopwatch import WARMING, Case, points
from prefloop.config.base import ArchitectureConfig
from prefloop.config.dpo import DPOConfig
from prefloop.config.sft import SFTConfig
from prefloop.data.templates import Encoded
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.dpo import fit_dpo
from prefloop.training.language_model import finetune
from prefloop.training.pairs import EncodedComparison
from prefloop.training.recorder import Recorder

STEPS = WARMING + 3
METHODS = ("sft", "dpo")
WIDTH, LAYERS, LENGTH, BATCH = 64, 2, 128, 8
LENGTHS = (64, 128, 256, 512, 1024)
BATCHES = (2, 4, 8, 16, 32, 64)
WIDTHS = (64, 128, 192, 256, 384, 512)
WHYS = {
    "length": "each token linear, attention quadratic: the share of both by this model's widths",
    "batch": "linear",
    "model": "linear in the weights that multiply",
}


def encoded(rows: int, length: int) -> list[Encoded]:
    """Random tokens, the second half of which is a completion."""
    draw = np.random.default_rng(0)
    half = length // 2
    ids = draw.integers(10, shapes.VOCABULARY - 64, (rows, length)).tolist()
    return [Encoded(row[:half], row[half:], [False] * half + [True] * (length - half)) for row in ids]


def train(method: str, of: ArchitectureConfig, rows: int, length: int, recorder: Recorder) -> None:
    """A few steps on sequences of one length; DPO's `rows` are pairs."""
    section = {"batch_size": rows, "steps": STEPS, "max_length": length, "schedule": "constant"}
    model = shapes.model(of)
    with tempfile.TemporaryDirectory() as name:
        checkpoints = Checkpoints(Path(name), 1e9)
        if method == "sft":
            config = SFTConfig(**section)  # type: ignore[arg-type]
            finetune(
                model,
                shapes.tokenizer(),
                encoded(rows, length),
                config,
                seed=0,
                precision="fp32",
                checkpoints=checkpoints,
                recorder=recorder,
            )
        else:
            _train_dpo(model, DPOConfig(**section), rows, length, checkpoints, recorder)  # type: ignore[arg-type]


def _train_dpo(
    model: PreTrainedModel,
    config: DPOConfig,
    rows: int,
    length: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> None:
    sides = encoded(2 * rows, length)
    pairs = [EncodedComparison(sides[2 * i : 2 * i + 2], [(0, 1)], 1.0) for i in range(rows)]
    fit_dpo(
        model,
        shapes.tokenizer(),
        pairs,
        [torch.zeros(2) for _ in pairs],
        config,
        seed=0,
        precision="fp32",
        checkpoints=checkpoints,
        recorder=recorder,
    )


def case(method: str, size: float, width: int, rows: int, length: int) -> Case:
    """One size of a series."""
    of = shapes.shape(width, LAYERS)
    cost = rows * (2 if method == "dpo" else 1) * shapes.flops(of, length, length - length // 2)
    return Case(size, cost, partial(train, method, of, rows, length))


def cases(series: str, method: str) -> list[Case]:
    """The sizes of a series."""
    if series == "length":
        return [case(method, length, WIDTH, BATCH, length) for length in LENGTHS]
    if series == "batch":
        return [case(method, rows, WIDTH, rows, LENGTH) for rows in BATCHES]
    found = []
    for width in WIDTHS:
        of = shapes.shape(width, LAYERS)
        found.append(case(method, shapes.weights(of) + width * shapes.VOCABULARY, width, BATCH, LENGTH))
    return found


UNITS = {"length": "tokens", "batch": "rows", "model": "weights"}


def curves(
    series: str, rounds: int, say: Callable[[str], None], methods: Sequence[str] = METHODS
) -> list[Curve]:
    """A curve a method."""
    found = []
    for method in methods:
        unit = "pairs" if (series, method) == ("batch", "dpo") else UNITS[series]
        name = f"{method} step, {series}"
        found.append(Curve(name, unit, WHYS[series], points(cases(series, method), rounds)))
        say(f"{name}: exponent {found[-1].measured:.2f}, theory {found[-1].predicted:.2f}")
    return found
