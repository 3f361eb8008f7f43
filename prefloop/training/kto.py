"""Fitting a policy to single completions, each marked desirable or not, with KTO.

Each step compares its rows with one reference point, estimated on pairs of a row's prompt and another row's
answer. All those pairs are known before training (the rows of a step and who answers whom are keyed by seed
and step), so the reference's log-probs of them are computed beforehand, too, and no second model is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.kto import KTOConfig
from prefloop.data.batching import Order, chunks, steps_in
from prefloop.data.holdout import prompt_text
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.data.unpaired import Unpaired
from prefloop.errors import DataError
from prefloop.objectives.kto import kto_loss, reference_point
from prefloop.training.direct import Run, completion_logprobs, summed
from prefloop.training.distribution import ALONE, Ranks, ranks
from prefloop.training.figures import share
from prefloop.training.loop import Part, train
from prefloop.training.noise import Key, permutation
from prefloop.training.pairs import Cut, is_cut
from prefloop.training.reference import row_logprobs


@dataclass(frozen=True)
class EncodedRow:
    """A completion in tokens.

    Attributes:
        prompt: normalised text, by which two prompts are the same.
        tokens: prompt and completion.
        desirable: its label.
    """

    prompt: str
    tokens: Encoded
    desirable: bool


@dataclass(frozen=True)
class KTOStep:
    """The rows of a step, and pairs of their prompts and other rows' answers for its reference point."""

    rows: list[int]
    mismatched: list[Encoded]


@dataclass(frozen=True)
class KTOReference:
    """Log-probs under the SFT policy: (N,) float of every row, (M,) float of each step's mismatched pairs."""

    rows: Tensor
    mismatched: list[Tensor]


def encode_unpaired(
    rows: Iterable[Unpaired], tokenizer: PreTrainedTokenizerBase, config: KTOConfig, *, strict: bool = True
) -> tuple[list[EncodedRow], Cut]:
    """Encodes every completion, and what was cut; desirable ones are the chosen side.

    Raises:
        DataError: see `Cut.require_alike`; held-out rows may be cut unequally by chance, `strict` off.
    """
    encoder = ChatEncoder(tokenizer, config.max_length)
    encoded: list[EncodedRow] = []
    cut, count = [0, 0], [0, 0]
    for row in rows:
        tokens = encoder.completions(row.prompt, [row.completion])[0]
        encoded.append(EncodedRow(prompt_text(row.prompt), tokens, row.desirable))
        cut[row.desirable] += is_cut(encoder, tokens)
        count[row.desirable] += 1
    found = Cut(encoder.cut, cut[True], cut[False], count[True], count[False])
    if strict:
        found.require_alike(config.max_length)
    return encoded, found


def training_steps(rows: Sequence[EncodedRow], config: KTOConfig, *, seed: int) -> list[KTOStep]:
    """The rows and mismatched pairs of every step of a training.

    Raises:
        DataError: all rows have the same label, or there is none.
    """
    desirable = sum(row.desirable for row in rows)
    if desirable in (0, len(rows)):
        label = "desirable" if desirable else "undesirable"
        raise DataError(
            f"kto has {len(rows):,} rows and all are {label}: nothing would hold the policy back"
            if rows
            else "kto has no row to train on",
            "add rows of the other label, or comparisons, which give both (`data: auto` reads either); to "
            "learn from desirable answers alone use sft",
        )
    order = Order(len(rows), config.batch_size, (seed, "kto"))
    total = steps_in(len(rows), config.batch_size, config.epochs, config.steps)
    batches = [list(order.step(step)) for step in range(total)]
    return _steps(rows, batches, (seed, "kto"), config.max_length)


def held_out_step(rows: Sequence[EncodedRow], config: KTOConfig, *, seed: int) -> list[KTOStep]:
    """All held-out rows as one step, so that one reference point serves them; none without rows."""
    return _steps(
        rows, [list(range(len(rows)))] if rows else [], (seed, "kto", "held out"), config.max_length
    )


def _steps(
    rows: Sequence[EncodedRow], batches: Sequence[list[int]], key: Key, max_length: int
) -> list[KTOStep]:
    return [
        KTOStep(batch, mismatch(rows, batch, (*key, "mismatch", step), max_length))
        for step, batch in enumerate(batches)
    ]


def mismatch(rows: Sequence[EncodedRow], batch: Sequence[int], key: Key, max_length: int) -> list[Encoded]:
    """For each row of a batch its prompt with an answer to another prompt of the batch.

    The batch is put into a keyed order, round which each prompt takes the next answer that is not to itself;
    a row is left out where all answers are. A prompt too long for its new answer loses its beginning.
    """
    ring = [batch[i] for i in permutation(key, len(batch))]
    pairs: list[Encoded] = []
    for place, own in enumerate(ring):
        following = ring[place + 1 :] + ring[:place]
        other = next((i for i in following if rows[i].prompt != rows[own].prompt), None)
        if other is not None:
            answer = rows[other].tokens.completion_ids
            prompt = rows[own].tokens.prompt_ids[-max(max_length - len(answer), 1) :]
            pairs.append(Encoded(prompt, answer, [False] * len(prompt) + [True] * len(answer)))
    return pairs


def kto_reference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    steps: Sequence[KTOStep],
    precision: str,
    cache: Path | None = None,
    *,
    weights: str = "",
) -> KTOReference:
    """Everything that the reference is asked, in one pass; `cache` and `weights` as for `row_logprobs`."""
    flat = [row.tokens for row in rows] + [pair for step in steps for pair in step.mismatched]
    found = row_logprobs(model, tokenizer, flat, precision, cache, weights=weights)
    own, mismatched = found[: len(rows)], found[len(rows) :]
    return KTOReference(own, list(mismatched.split([len(step.mismatched) for step in steps])))


def fit_kto(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    steps: Sequence[KTOStep],
    reference: KTOReference,
    config: KTOConfig,
    **run: Unpack[Run],
) -> dict[str, Any]:
    """Trains in place; a step's loss is the mean over its rows.

    Args:
        steps: from `training_steps`.

    Returns:
        What `train` says of the training, for the stage's figures.
    """
    precision = run["precision"]

    def parts(step: int, size: int) -> Iterator[Part]:
        against = reference.mismatched[step]
        return _parts(
            model, tokenizer, rows, steps[step], reference.rows, against, config, precision, size, ranks()
        )

    return train(
        model,
        config,
        len(steps),
        parts,
        key=(run["seed"], "kto"),
        checkpoints=run["checkpoints"],
        recorder=run["recorder"],
        what="kto",
        observer=run.get("observer"),
    )


@torch.no_grad()
def held_out_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    steps: Sequence[KTOStep],
    reference: KTOReference,
    config: KTOConfig,
    precision: str,
) -> dict[str, float]:
    """Loss and figures on held-out rows, `steps` being `held_out_step`; empty without any."""
    model.eval()
    if not steps:
        return {}
    return summed(
        _parts(
            model, tokenizer, rows, steps[0], reference.rows, reference.mismatched[0], config, precision, 128
        )
    )


def _parts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    step: KTOStep,
    reference: Tensor,
    mismatched_reference: Tensor,
    config: KTOConfig,
    precision: str,
    size: int,
    group: Ranks = ALONE,
) -> Iterator[Part]:
    """The parts of a step, of at most `size` rows each (0: no limit), that are this process's share."""
    # One point for the whole step, before any of its parts: neither micro-batches nor shares change it.
    point = step_point(model, tokenizer, step.mismatched, mismatched_reference, precision, size, group)
    good = sum(rows[i].desirable for i in step.rows)
    for own in chunks(group.share(step.rows), size):
        sums, _ = completion_logprobs(model, tokenizer, [rows[i].tokens for i in own], precision)
        desirable = torch.tensor([rows[i].desirable for i in own], device=sums.device)
        terms = kto_loss(
            sums,
            reference[list(own)].to(sums.device),
            desirable,
            point,
            beta=config.beta,
            desirable_weight=config.desirable_weight,
            undesirable_weight=config.undesirable_weight,
        )
        ahead = (terms.reward > config.beta * point) == desirable
        figures = {
            "accuracy": share(ahead, len(step.rows)),
            "reference_point": share(point, len(step.rows) / len(own)),
        }
        logprobs = sums.detach()
        # A step without rows of one label says nothing about that label, rather than 0.
        for side, mask, count in (
            ("chosen", desirable, good),
            ("rejected", ~desirable, len(step.rows) - good),
        ):
            if count:
                figures[f"{side}_reward"] = share(terms.reward[mask], count)
                figures[f"{side}_logprob"] = share(logprobs[mask], count)
        yield Part(terms.loss.sum() / len(step.rows), figures)


@torch.no_grad()
def step_point(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    mismatched: Sequence[Encoded],
    reference: Tensor,
    precision: str,
    micro_batch_size: int,
    group: Ranks = ALONE,
) -> Tensor:
    """The reference point of a step under the present policy: a scalar on the model's device.

    Without dropout, as the reference that it is measured to has none.
    """
    training = model.training
    model.eval()

    def own() -> list[float]:
        sums: list[float] = []
        for some in chunks(group.share(range(len(mismatched))), micro_batch_size):
            pairs = [mismatched[i] for i in some]
            sums += completion_logprobs(model, tokenizer, pairs, precision)[0].tolist()
        return sums

    try:
        together = torch.tensor(group.woven(group.together(own)), device=model.device)
    finally:
        model.train(training)
    return reference_point(together, reference.to(together.device))
