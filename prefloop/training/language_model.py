"""Trainings that learn tokens: pre-training on text and supervised fine-tuning on demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.sft import SFTConfig
from prefloop.config.training import TrainingConfig
from prefloop.data.batching import Batch, Order, best_fit, chunks, collate, pack, steps_in
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.errors import DataError, PrefloopError
from prefloop.models.forward import (
    forward_groups,
    passes_of,
    precision_context,
    require_isolation,
    token_logprobs,
)
from prefloop.models.halves import side_by_side
from prefloop.objectives.sft import sft_loss
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.distribution import ranks
from prefloop.training.loop import Part, train
from prefloop.training.neftune import noise_of, noisy_embeddings
from prefloop.training.noise import Key
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
) -> dict[str, Any]:
    """Next-token training on packed blocks, in place; returns what `prefloop.training.loop.train` does."""
    rows = TokenRows(model, tokenizer, encode_blocks(blocks), config, (seed, "base"), precision)
    return rows.train(checkpoints, recorder)


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    config: SFTConfig,
    *,
    seed: int,
    precision: str,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> dict[str, Any]:
    """Supervised fine-tuning on encoded demonstrations, in place; returns what
    `prefloop.training.loop.train` does.

    Raises:
        DataError: there is no row. ConfigError: packing is asked of a model that cannot keep rows apart.
    """
    if config.packing:
        require_isolation(model, padded=bool(config.neftune_alpha))
    token_rows = TokenRows(
        model,
        tokenizer,
        rows,
        config,
        (seed, "sft"),
        precision,
        average=config.average,
        packing=config.packing,
        neftune_alpha=config.neftune_alpha,
    )
    return token_rows.train(checkpoints, recorder)


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
        PrefloopError: a row cannot be encoded or has no trainable token; the message names it.
    """
    encoder = ChatEncoder(tokenizer, max_length)
    encoded = []
    for number, row in enumerate(rows, start=1):
        name = f"demonstration {row.get('id', number)}"
        try:
            example = encoder.conversation(row["prompt"], row["completion"], every_turn=every_turn)
        except PrefloopError as error:
            raise type(error)(f"{name}: {error.message}", error.remedy) from error
        if not any(example.trainable):
            raise DataError(f"{name} has no trainable token", "correct or remove the row")
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


@dataclass(frozen=True)
class TokenRows:
    """Rows whose tokens are learned, and how a step of them is laid out.

    Attributes:
        key: what the training's noise is for; its last part names the training.
        average, packing, neftune_alpha: see `SFTConfig`. Packing changes the layout of a step alone: the
            same rows make up each step, and the loss is the same sum.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[Encoded]
    config: TrainingConfig
    key: Key
    precision: str
    average: str = "token"
    packing: bool = False
    neftune_alpha: float = 0.0

    def train(self, checkpoints: Checkpoints, recorder: Recorder) -> dict[str, Any]:
        """Trains the model in place.

        Raises:
            DataError: there is no row.
        """
        config, what = self.config, str(self.key[-1])
        if not self.rows:
            raise DataError(
                f"{what} has no rows to train on", "look at data/quarantine and metrics/validate-*.json"
            )
        order = Order(len(self.rows), config.batch_size, self.key)

        def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
            return self.parts(order.step(step), step, micro_batch_size)

        return train(
            self.model,
            config,
            steps_in(len(self.rows), config.batch_size, config.epochs, config.steps),
            parts,
            key=self.key,
            checkpoints=checkpoints,
            recorder=recorder,
            what=what,
        )

    def parts(self, chosen: Sequence[int], step: int, micro_batch_size: int) -> Iterator[Part]:
        """The parts of a step that learns the rows `chosen`; of several processes each gives its share."""
        sequences = self.average == "sequence"
        total = len(chosen) if sequences else sum(sum(self.rows[i].trainable) for i in chosen)
        for groups in self._forwards(chosen, micro_batch_size):
            passes = [self._batch(group, step) for group in groups]
            losses = side_by_side(self.model, [partial(self._loss, one, total) for one in passes])
            learned = torch.stack([one.batch.wanted.sum() for one in passes])
            yield Part(torch.stack(losses).sum(), {"tokens": learned.sum()})

    def _batch(self, group: list[list[int]], step: int) -> _Pass:
        """Tensor rows of a pass, each with who stands in it."""
        device = self.model.device.type
        members = [[self.rows[i] for i in row] for row in group]
        if self.packing:
            batch = pack(members, self.tokenizer).to(device)
        else:
            batch = collate([one for row in members for one in row], self.tokenizer).to(device)
        weights = sequence_weights(members, batch) if self.average == "sequence" else None
        noise = noise_of(
            self.model, self.rows, group, batch, self.neftune_alpha, (*self.key, "neftune", step)
        )
        return _Pass(batch, weights, noise)

    def _loss(self, one: _Pass, total: int) -> Tensor:
        """What a pass adds to the loss of a step of so many tokens, or sequences."""
        batch = one.batch
        with (
            precision_context(self.precision, self.model.device.type),
            noisy_embeddings(self.model, one.noise),
        ):
            logprobs, _ = token_logprobs(
                self.model,
                batch.input_ids,
                batch.attention_mask,
                batch.wanted,
                position_ids=batch.position_ids,
                padded=one.noise is not None,
            )
        return sft_loss(logprobs, batch.wanted, total, one.weights)

    def _forwards(self, chosen: Sequence[int], size: int) -> Iterator[list[list[list[int]]]]:
        """Forward passes of at most `size` tensor rows, those together that go side by side: for each row of
        each pass, who stands in it."""
        layout = [[i] for i in chosen]
        if self.packing:
            lengths = [len(self.rows[i].input_ids) for i in chosen]
            layout = [[chosen[n] for n in row] for row in best_fit(lengths, self.config.max_length)]
        layout.sort(key=self._length)
        layout = ranks().share(layout)
        for micro in chunks(range(len(layout)), size):
            lengths = [self._length(layout[n]) for n in micro]
            # Noise is put on a model for one pass at a time.
            alone = [[group] for group in forward_groups(self.model, lengths)] if self.neftune_alpha else None
            for groups in alone or passes_of(self.model, lengths):
                yield [[layout[micro[n]] for n in group] for group in groups]

    def _length(self, members: Sequence[int]) -> int:
        return sum(len(self.rows[i].input_ids) for i in members)


@dataclass(frozen=True)
class _Pass:
    """What a forward pass sees.

    Attributes:
        weights: (B, T) float32, of each token in the loss; None weighs them alike.
        noise: (B, T, d) float32, put on the embeddings; None puts nothing.
    """

    batch: Batch
    weights: Tensor | None
    noise: Tensor | None


def sequence_weights(members: Sequence[Sequence[Encoded]], batch: Batch) -> Tensor:
    """One over the trainable tokens of each token's own sequence: (B, T) float32, 0 on padding.

    Args:
        members: for each row of `batch`, the sequences that stand in it, in order.
    """
    weights = torch.zeros(batch.input_ids.shape)
    for row, sequences in zip(weights, members, strict=True):
        start = 0
        for one in sequences:
            row[start : start + len(one.input_ids)] = 1.0 / max(sum(one.trainable), 1)
            start += len(one.input_ids)
    return weights.to(batch.input_ids.device)
