"""Trainings that learn tokens: pre-training on text and supervised fine-tuning on demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.training import TrainingConfig
from prefloop.data.batching import Order, chunks, collate, length_groups, steps_in
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.errors import DataError
from prefloop.models.forward import precision_context, token_logprobs
from prefloop.objectives.sft import sft_loss
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.loop import Part, train
from prefloop.training.recorder import Recorder


def pack_documents(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Documents end to end, an end token after each, in blocks of `length` tokens; a short tail is kept."""
    stream: list[int] = []
    blocks: list[list[int]] = []
    for text in texts:
        stream += [
            *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
            int(tokenizer.eos_token_id),
        ]
        while len(stream) >= length:
            blocks.append(stream[:length])
            stream = stream[length:]
    if len(stream) > 1:
        blocks.append(stream)
    return blocks


def encode_blocks(blocks: Iterable[list[int]]) -> list[Encoded]:
    """Blocks of which every token but the first is learned."""
    return [Encoded(block[:1], block[1:], [False] + [True] * (len(block) - 1)) for block in blocks]


def pretrain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    blocks: Sequence[list[int]],
    config: TrainingConfig,
    *,
    seed: int,
    precision: str,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> None:
    """Next-token training on packed blocks, in place."""
    _train_rows(
        model,
        tokenizer,
        encode_blocks(blocks),
        config,
        (seed, "base"),
        precision,
        checkpoints,
        recorder,
        "base",
    )


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: TrainingConfig,
    *,
    seed: int,
    precision: str,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> None:
    """Supervised fine-tuning on encoded demonstrations, in place."""
    _train_rows(model, tokenizer, rows, config, (seed, "sft"), precision, checkpoints, recorder, "sft")


def encode_demonstrations(
    rows: Iterable[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    every_turn: bool = False,
) -> tuple[list[Encoded], int]:
    """Encodes rows of data/validated/demonstrations.jsonl; returns them and how many lost tokens to
    `max_length`.

    Args:
        every_turn: each assistant turn is learned, not the last one alone.

    Raises:
        DataError: a row has no trainable token.
    """
    encoder = ChatEncoder(tokenizer, max_length)
    encoded = []
    for number, row in enumerate(rows, start=1):
        example = encoder.conversation(row["prompt"], row["completion"], every_turn=every_turn)
        if not any(example.trainable):
            raise DataError(f"demonstration {row.get('id', number)} has no trainable token")
        encoded.append(example)
    return encoded, encoder.cut


def mean_loss(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], *, precision: str
) -> float:
    """Mean negative log-likelihood of the trainable tokens (nats a token); 0 without rows."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for group in chunks(range(len(rows)), 128):
            batch = collate([rows[i] for i in group], tokenizer).to(model.device.type)
            with precision_context(precision, model.device.type):
                logprobs, _ = token_logprobs(model, batch.input_ids, batch.attention_mask, batch.wanted)
            total -= float(logprobs.sum())
            tokens += int(batch.wanted.sum())
    return total / max(tokens, 1)


def _train_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: TrainingConfig,
    key: tuple[int | str, ...],
    precision: str,
    checkpoints: Checkpoints,
    recorder: Recorder,
    what: str,
) -> None:
    if not rows:
        raise DataError(
            f"{what} has no rows to train on", "look at data/quarantine and metrics/validate-*.json"
        )
    order = Order(len(rows), config.batch_size, key)
    total = steps_in(len(rows), config.batch_size, config.epochs, config.steps)
    train(
        model,
        config,
        total,
        lambda step: row_parts(model, tokenizer, [rows[i] for i in order.step(step)], config, precision),
        key=key,
        checkpoints=checkpoints,
        recorder=recorder,
        what=what,
    )


def row_parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: TrainingConfig,
    precision: str,
) -> Iterator[Part]:
    """Loss of the rows of one optimiser step: the mean over their trainable tokens."""
    device = model.device.type
    rows = sorted(rows, key=lambda row: len(row.input_ids))
    total = sum(sum(row.trainable) for row in rows)
    for micro in chunks(range(len(rows)), config.micro_batch_size):
        for group in length_groups([len(rows[i].input_ids) for i in micro], device):
            batch = collate([rows[micro[n]] for n in group], tokenizer).to(device)
            with precision_context(precision, device):
                logprobs, _ = token_logprobs(model, batch.input_ids, batch.attention_mask, batch.wanted)
            yield Part(sft_loss(logprobs, batch.wanted, total), {"tokens": float(batch.wanted.sum())})
