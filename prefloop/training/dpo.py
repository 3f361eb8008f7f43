"""Fitting a policy to comparisons with DPO."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.dpo import DPOConfig
from prefloop.data.batching import Order, chunks, collate, length_groups, steps_in
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
class EncodedComparison:
    """The completions of one prompt in tokens, each once, and the pairs they make up.

    Attributes:
        completions: those that enter a pair.
        pairs: (better, worse) indices into `completions`.
        probability: the label's softness, 1 for a plain label.
    """

    completions: list[Encoded]
    pairs: list[tuple[int, int]]
    probability: float


def encode_comparisons(
    rankings: Iterable[Ranking], tokenizer: PreTrainedTokenizerBase, config: DPOConfig
) -> tuple[list[EncodedComparison], int]:
    """Every ordered pair of every ranking (at most `pairs_per_prompt`, the widest apart first), and how many
    prompts or completions were cut."""
    encoder = ChatEncoder(tokenizer, config.max_length)
    comparisons: list[EncodedComparison] = []
    for ranking in rankings:
        pairs = ranking.pairs
        if config.pairs_per_prompt:
            ranks = ranking.ranks
            pairs = sorted(pairs, key=lambda ij: ranks[ij[0]] - ranks[ij[1]])[: config.pairs_per_prompt]
        used = sorted({i for pair in pairs for i in pair})
        place = {i: n for n, i in enumerate(used)}
        encoded = encoder.completions(ranking.prompt, [ranking.completions[i] for i in used])
        comparisons.append(
            EncodedComparison(encoded, [(place[i], place[j]) for i, j in pairs], ranking.probability)
        )
    return comparisons, encoder.cut


def completion_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Encoded], precision: str
) -> tuple[Tensor, Tensor]:
    """Log-probs SUMMED over each completion, (B,), and completion lengths (B,) in tokens."""
    device = model.device.type
    batch = collate(rows, tokenizer).to(device)
    groups = length_groups(batch.attention_mask.sum(dim=-1).tolist(), device)
    sums = []
    for group in groups:
        part = batch.rows(group)
        with precision_context(precision, device):
            logprobs, _ = token_logprobs(model, part.input_ids, part.attention_mask, part.wanted)
        sums.append(logprobs.sum(dim=-1))
    place = torch.tensor([i for group in groups for i in group], device=device)
    together = torch.cat(sums)
    return torch.zeros_like(together).index_copy(0, place, together), batch.wanted.sum(dim=-1)


@torch.no_grad()
def reference_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    precision: str,
    cache: Path | None = None,
) -> list[Tensor]:
    """Log-probs of every completion under the reference, (K,) float32 on the CPU for each comparison.

    Computed once: kept at `cache`, which a resumed training reads.
    """
    sizes = [len(comparison.completions) for comparison in comparisons]
    flat = [row for comparison in comparisons for row in comparison.completions]
    stored = _stored(cache)
    if stored is not None and len(stored) == len(flat):
        return list(stored.split(sizes))
    model.eval()
    order = sorted(range(len(flat)), key=lambda i: (len(flat[i].input_ids), i))
    result = torch.zeros(len(flat))
    with reference_mode(model):
        for group in chunks(order, 128):
            sums, _ = completion_logprobs(model, tokenizer, [flat[i] for i in group], precision)
            result[list(group)] = sums.cpu()
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(".tmp")
        save_file({"reference": result}, draft)
        draft.replace(cache)
    return list(result.split(sizes)) if sizes else []


def _stored(cache: Path | None) -> Tensor | None:
    if cache is None or not cache.exists():
        return None
    try:
        return load_file(cache)["reference"]
    except (SafetensorError, KeyError):  # damaged: computed again
        return None


def fit_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    reference: Sequence[Tensor],
    config: DPOConfig,
    *,
    seed: int,
    precision: str,
    checkpoints: Checkpoints,
    recorder: Recorder,
) -> None:
    """Trains in place; a step's loss is the mean over all pairs of its prompts.

    Args:
        reference: for each comparison (K,) float, log-probs of its completions under the SFT policy.

    Raises:
        DataError: there is no pair.
    """
    if not comparisons:
        raise DataError(
            "dpo has no pair to train on", "look at data/quarantine and metrics/validate-preferences.json"
        )
    key = (seed, "dpo")
    order = Order(len(comparisons), config.batch_size, key)
    total = steps_in(len(comparisons), config.batch_size, config.epochs, config.steps)

    def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
        chosen = order.step(step)
        pairs = sum(len(comparisons[i].pairs) for i in chosen)
        for group in chunks(chosen, micro_batch_size):
            yield comparison_part(
                model,
                tokenizer,
                [comparisons[i] for i in group],
                [reference[i] for i in group],
                config,
                precision,
                pairs,
            )

    train(model, config, total, parts, key=key, checkpoints=checkpoints, recorder=recorder, what="dpo")


def comparison_part(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    reference: Sequence[Tensor],
    config: DPOConfig,
    precision: str,
    count: int,
) -> Part:
    """Loss and figures of comparisons, as shares of a step of `count` pairs; each completion is run once."""
    rows = [row for comparison in comparisons for row in comparison.completions]
    sums, lengths = completion_logprobs(model, tokenizer, rows, precision)
    device = sums.device
    better: list[int] = []
    worse: list[int] = []
    flipped: list[float] = []
    start = 0
    for comparison in comparisons:
        for i, j in comparison.pairs:
            better.append(start + i)
            worse.append(start + j)
            # A soft label p is a label of which 1 - p is flipped; smoothing flips a share of either.
            flipped.append(
                config.label_smoothing + (1 - comparison.probability) * (1 - 2 * config.label_smoothing)
            )
        start += len(comparison.completions)
    against = torch.cat(list(reference)).to(device)
    terms = dpo_loss(
        sums[better],
        sums[worse],
        against[better],
        against[worse],
        beta=config.beta,
        label_smoothing=torch.tensor(flipped, device=device),
    )
    loss = terms.loss.sum() / count
    nll = -(sums[better] / lengths[better].clamp(min=1)).sum() / count
    if config.nll_coef:
        loss = loss + config.nll_coef * nll
    gap = terms.chosen_reward - terms.rejected_reward
    return Part(
        loss,
        {
            "accuracy": float((gap > 0).sum()) / count,
            "margin": float(gap.sum()) / count,
            "chosen_reward": float(terms.chosen_reward.sum()) / count,
            "rejected_reward": float(terms.rejected_reward.sum()) / count,
            "chosen_nll": float(nll.detach()),
        },
    )


@torch.no_grad()
def held_out_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    reference: Sequence[Tensor],
    config: DPOConfig,
    precision: str,
) -> dict[str, float]:
    """Loss and accuracy on held-out comparisons; empty without any."""
    count = sum(len(comparison.pairs) for comparison in comparisons)
    model.eval()
    figures: dict[str, float] = {}
    for group in chunks(range(len(comparisons)), 64):
        part = comparison_part(
            model,
            tokenizer,
            [comparisons[i] for i in group],
            [reference[i] for i in group],
            config,
            precision,
            count,
        )
        for name, value in {"loss": float(part.loss), **part.metrics}.items():
            figures[name] = figures.get(name, 0.0) + float(value)
    return figures
