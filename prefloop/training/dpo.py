"""Fitting a policy to comparisons with DPO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.dpo import DPOConfig
from prefloop.data.batching import Batch, Order, chunks, pad, steps_in
from prefloop.data.comparisons import Ranking
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.errors import DataError
from prefloop.models.adapters import reference_mode
from prefloop.models.forward import precision_context, token_logprobs
from prefloop.objectives.dpo import dpo_loss
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.loop import Part, train
from prefloop.training.recorder import Recorder


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected completion of one prompt, in tokens; `probability` is the label's softness."""

    chosen: Encoded
    rejected: Encoded
    probability: float


def encode_pairs(
    rankings: Iterable[Ranking], tokenizer: PreTrainedTokenizerBase, config: DPOConfig
) -> tuple[list[Pair], int]:
    """Every ordered pair of every ranking (at most `pairs_per_prompt`, the widest apart first), and how many were cut."""
    encoder = ChatEncoder(tokenizer, config.max_length)
    pairs: list[Pair] = []
    for ranking in rankings:
        encoded = encoder.completions(ranking.prompt, ranking.completions)
        indices = ranking.pairs
        if config.pairs_per_prompt:
            ranks = ranking.ranks
            indices = sorted(indices, key=lambda ij: ranks[ij[0]] - ranks[ij[1]])[: config.pairs_per_prompt]
        pairs += [Pair(encoded[i], encoded[j], ranking.probability) for i, j in indices]
    return pairs, encoder.cut


def completion_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], precision: str
) -> tuple[Tensor, Batch]:
    """Log-probs SUMMED over each completion, (B,), and the padded batch."""
    batch = _collate(rows, tokenizer).to(model.device.type)
    with precision_context(precision, model.device.type):
        logprobs, _ = token_logprobs(model, batch.input_ids, batch.attention_mask, batch.wanted)
    return logprobs.sum(dim=-1), batch


@torch.no_grad()
def reference_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    precision: str,
    cache: Path | None = None,
) -> Tensor:
    """Log-probs of every pair under the reference, (P, 2) float32 on the CPU; computed once, kept at `cache`."""
    if cache and cache.exists():
        stored = load_file(cache)["reference"]
        if stored.shape[0] == len(pairs):
            return stored
    model.eval()
    flat = [row for pair in pairs for row in (pair.chosen, pair.rejected)]
    order = sorted(range(len(flat)), key=lambda i: (len(flat[i].input_ids), i))
    result = torch.zeros(len(flat))
    with reference_mode(model):
        for group in chunks(order, 128):
            sums, _ = completion_logprobs(model, tokenizer, [flat[i] for i in group], precision)
            result[list(group)] = sums.cpu()
    table = result.view(-1, 2).contiguous()
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(".tmp")
        save_file({"reference": table}, draft)
        draft.replace(cache)
    return table


def fit_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    reference: Tensor,
    config: DPOConfig,
    *,
    seed: int,
    precision: str,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> None:
    """Trains in place.

    Args:
        reference: (P, 2) float, log-probs of chosen and rejected under the SFT policy.

    Raises:
        DataError: there is no pair.
    """
    if not pairs:
        raise DataError("dpo has no pair to train on", "look at data/quarantine and metrics/validate-preferences.json")
    order = Order(len(pairs), config.batch_size, (seed, "dpo"))
    total = steps_in(len(pairs), config.batch_size, config.epochs, config.steps)

    def parts(step: int) -> Iterator[Part]:
        chosen = sorted(order.step(step), key=lambda i: len(pairs[i].chosen.input_ids))
        for group in chunks(chosen, config.micro_batch_size):
            yield pair_part(model, tokenizer, [pairs[i] for i in group], reference[list(group)], config, precision, len(chosen))

    train(model, config, total, parts, checkpoints=checkpoints, recorder=recorder, what="dpo")


def pair_part(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    reference: Tensor,
    config: DPOConfig,
    precision: str,
    count: int,
) -> Part:
    """Loss and figures of some pairs, as shares of a step of `count` pairs; chosen and rejected go through together."""
    rows = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    sums, batch = completion_logprobs(model, tokenizer, rows, precision)
    chosen, rejected = sums[: len(pairs)], sums[len(pairs) :]
    reference = reference.to(sums.device)
    smoothing = torch.tensor(
        [config.label_smoothing + (1 - pair.probability) * (1 - 2 * config.label_smoothing) for pair in pairs],
        device=sums.device,
    )
    terms = dpo_loss(
        chosen, rejected, reference[:, 0], reference[:, 1], beta=config.beta, label_smoothing=smoothing
    )
    loss = terms.loss.sum() / count
    lengths = batch.wanted[: len(pairs)].sum(dim=-1).clamp(min=1)
    nll = -(chosen / lengths).sum() / count
    if config.nll_coef:
        loss = loss + config.nll_coef * nll
    share = 1.0 / count
    return Part(
        loss,
        {
            "accuracy": (terms.chosen_reward > terms.rejected_reward).sum().item() * share,
            "margin": (terms.chosen_reward - terms.rejected_reward).sum().item() * share,
            "chosen_reward": terms.chosen_reward.sum().item() * share,
            "rejected_reward": terms.rejected_reward.sum().item() * share,
            "chosen_nll": nll.item(),
        },
    )


@torch.no_grad()
def held_out_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    reference: Tensor,
    config: DPOConfig,
    precision: str,
) -> dict[str, float]:
    """Loss and accuracy on held-out pairs; empty without any."""
    if not pairs:
        return {}
    model.eval()
    figures: dict[str, float] = {}
    for group in chunks(range(len(pairs)), 64):
        part = pair_part(
            model, tokenizer, [pairs[i] for i in group], reference[list(group)], config, precision, len(pairs)
        )
        for name, value in {"loss": part.loss.item(), **part.metrics}.items():
            figures[name] = figures.get(name, 0.0) + float(value)
    return figures


def _collate(rows: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> Batch:
    return pad([row.input_ids for row in rows], [row.trainable for row in rows], int(tokenizer.pad_token_id))
