"""What a training's steps have to get through: sequences, their tokens and model operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import AutoConfig

from benchmarks.alongside.material import SEED
from benchmarks.alongside.offline import unpaired
from benchmarks.alongside.side import Side
from benchmarks.timing.flops import Pass, Shape
from benchmarks.timing.sizes import SAMPLING, WARM_UP
from prefloop.config.kto import KTOConfig
from prefloop.data.batching import Order
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.models.loading import load_tokenizer
from prefloop.training.kto import encode_unpaired, training_steps


def per_step(side: Side) -> tuple[float, float]:
    """Real tokens that are learned from, and operations, a timed step: means over the steps.

    Of methods that sample: 0 and 0, as what they do is not known beforehand; of their prompts nothing counts.
    """
    if side.row.method in SAMPLING:
        return 0.0, 0.0
    shape = Shape.of(AutoConfig.from_pretrained(side.material.policy))
    steps = list(passes(side))[WARM_UP:]
    tokens = [sum(one.tokens for one in step if one.learned) for step in steps]
    work = [shape.step(step) for step in steps]
    return sum(tokens) / len(steps), sum(work) / len(steps)


def passes(side: Side) -> Iterator[list[Pass]]:
    """The sequences of each step.

    The reference's log-probs are no part of a step: prefloop computes them once, before. KTO's reference
    point is, and has no backward pass.
    """
    method, rows = side.row.method, side.material.conversations
    tokenizer = load_tokenizer(str(side.material.policy))
    if method == "kto":
        config = KTOConfig(**side.section)
        encoded, _ = encode_unpaired(unpaired(side.material), tokenizer, config)
        for step in training_steps(encoded, config, seed=SEED):
            own = [_pass(encoded[i].tokens) for i in step.rows]
            yield own + [_pass(pair, learned=False) for pair in step.mismatched]
        return
    encoder = ChatEncoder(tokenizer, side.section["max_length"])
    answers: Sequence[str] = ("chosen",) if method == "sft" else ("chosen", "rejected")
    order = Order(len(rows), side.section["batch_size"], (SEED, method))
    for number in range(side.section["steps"]):
        found: list[Pass] = []
        for i in order.step(number):
            given: list[Any] = [rows[i][answer] for answer in answers]
            found += [
                _pass(one, head=method != "reward") for one in encoder.completions(rows[i]["prompt"], given)
            ]
        yield found


def _pass(row: Encoded, *, head: bool = True, learned: bool = True) -> Pass:
    return Pass(len(row.input_ids), len(row.completion_ids) if head else 0, learned)
