"""What the trainings on preferences share: comparisons in tokens, log-probs of completions, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.direct import PairwiseConfig
from prefloop.data.batching import Order, chunks, collate, length_groups, steps_in
from prefloop.data.comparisons import Ranking
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.errors import DataError
from prefloop.models.forward import precision_context, token_logprobs
from prefloop.objectives.completions import PairTerms, mean_logprob
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.distribution import ALONE, Ranks, ranks
from prefloop.training.loop import Observer, Part, train
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


@dataclass(frozen=True)
class Cut:
    """What `max_length` cut.

    Attributes:
        prompts: prompts that were cut, themselves or a completion of theirs.
        chosen, rejected: completions cut on either side; one in several pairs counts in each.
        chosen_of, rejected_of: completions on either side.
    """

    prompts: int
    chosen: int
    rejected: int
    chosen_of: int
    rejected_of: int

    def require_alike(self, max_length: int) -> None:
        """Raises DataError when most completions of one side are cut, and of the other at most half that
        share: the loss would then learn who was cut, since a cut completion has no end token."""
        shares = self.chosen / max(self.chosen_of, 1), self.rejected / max(self.rejected_of, 1)
        if max(shares) > 0.5 and min(shares) <= max(shares) / 2:
            raise DataError(
                f"max_length {max_length} cuts {self.chosen:,} of {self.chosen_of:,} chosen completions, but "
                f"{self.rejected:,} of {self.rejected_of:,} rejected ones: the loss would learn the cut",
                "raise max_length (and the model's context, if that is the limit), or drop the longest rows",
            )


def is_cut(encoder: ChatEncoder, row: Encoded) -> bool:
    """True for a completion that lost its end token to `max_length`."""
    return not row.completion_ids or row.completion_ids[-1] not in encoder.stops


def encode_comparisons(
    rankings: Iterable[Ranking],
    tokenizer: PreTrainedTokenizerBase,
    config: PairwiseConfig,
    *,
    strict: bool = True,
) -> tuple[list[EncodedComparison], Cut]:
    """Every ordered pair of every ranking (at most `pairs_per_prompt`, the widest apart first), and what was
    cut. A ranking of ties alone has no pair and is left out.

    Args:
        strict: refuse rows of which one side alone is cut. A few held-out rows may be so by chance.

    Raises:
        DataError: see `Cut.require_alike`.
    """
    encoder = ChatEncoder(tokenizer, config.max_length)
    comparisons: list[EncodedComparison] = []
    chosen = rejected = count = 0
    for ranking in rankings:
        pairs = ranking.pairs
        if not pairs:
            continue
        if config.pairs_per_prompt:
            ranks = ranking.ranks
            pairs = sorted(pairs, key=lambda ij: ranks[ij[0]] - ranks[ij[1]])[: config.pairs_per_prompt]
        used = sorted({i for pair in pairs for i in pair})
        place = {i: n for n, i in enumerate(used)}
        encoded = encoder.completions(ranking.prompt, [ranking.completions[i] for i in used])
        pairs = [(place[i], place[j]) for i, j in pairs]
        comparisons.append(EncodedComparison(encoded, pairs, ranking.probability))
        short = [is_cut(encoder, row) for row in encoded]
        chosen += sum(short[i] for i, _ in pairs)
        rejected += sum(short[j] for _, j in pairs)
        count += len(pairs)
    cut = Cut(encoder.cut, chosen, rejected, count, count)
    if strict:
        cut.require_alike(config.max_length)
    return comparisons, cut


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


@dataclass(frozen=True)
class PolicyPairs:
    """All pairs of some comparisons under the policy.

    Attributes:
        chosen, rejected: (P,) float, log-probs SUMMED over the completion's tokens, with gradient.
        chosen_lengths, rejected_lengths: (P,) int64, tokens.
        better, worse: (P,) int64, place of each side among the comparisons' completions, end to end.
        probability: (P,) float, softness of the labels.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    better: Tensor
    worse: Tensor
    probability: Tensor

    @property
    def chosen_mean(self) -> Tensor:
        """(P,) float, log-prob a token."""
        return mean_logprob(self.chosen, self.chosen_lengths)

    @property
    def rejected_mean(self) -> Tensor:
        """(P,) float, log-prob a token."""
        return mean_logprob(self.rejected, self.rejected_lengths)

    def logprob_figures(self, count: int) -> dict[str, float]:
        """The share, in a step of `count` pairs, of what to watch: both falling together says that the policy
        moves away from all that it was shown."""
        return {
            "chosen_logprob": float(self.chosen.detach().sum()) / count,
            "rejected_logprob": float(self.rejected.detach().sum()) / count,
            "chosen_nll": -float(self.chosen_mean.detach().sum()) / count,
        }


def policy_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    precision: str,
) -> PolicyPairs:
    """Runs each completion once and puts its log-prob into all its pairs."""
    rows = [row for comparison in comparisons for row in comparison.completions]
    sums, lengths = completion_logprobs(model, tokenizer, rows, precision)
    better: list[int] = []
    worse: list[int] = []
    soft: list[float] = []
    start = 0
    for comparison in comparisons:
        for i, j in comparison.pairs:
            better.append(start + i)
            worse.append(start + j)
            soft.append(comparison.probability)
        start += len(comparison.completions)
    left = torch.tensor(better, device=sums.device)
    right = torch.tensor(worse, device=sums.device)
    probability = torch.tensor(soft, device=sums.device, dtype=sums.dtype)
    return PolicyPairs(sums[left], sums[right], lengths[left], lengths[right], left, right, probability)


def reward_part(terms: PairTerms, pairs: PolicyPairs, count: int, nll_coef: float) -> Part:
    """Loss and figures of pairs whose rewards are compared, as shares of a step of `count` pairs.

    Args:
        nll_coef: weight of the chosen completions' negative log-likelihood a token.
    """
    loss = terms.loss.sum() / count
    if nll_coef:
        loss = loss - nll_coef * pairs.chosen_mean.sum() / count
    gap = terms.chosen_reward - terms.rejected_reward
    return Part(
        loss,
        {
            "accuracy": float((gap > 0).sum()) / count,
            "margin": float(gap.sum()) / count,
            "chosen_reward": float(terms.chosen_reward.sum()) / count,
            "rejected_reward": float(terms.rejected_reward.sum()) / count,
            **pairs.logprob_figures(count),
        },
    )


class Run(TypedDict):
    """What every training takes beside its model, rows and configuration.

    Attributes:
        seed: of all noise. precision: "fp32" or "bf16". checkpoints, recorder: where state and figures go.
        observer: looks at the policy now and then.
    """

    seed: int
    precision: str
    checkpoints: Checkpoints
    recorder: Recorder
    observer: NotRequired[Observer]


PairsPart = Callable[[PolicyPairs, Sequence[int], int], Part]
"""From pairs under the policy, the comparisons they are of, and how many the step has, to their share."""


def fit_comparisons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    part: PairsPart,
    config: PairwiseConfig,
    what: str,
    **run: Unpack[Run],
) -> dict[str, Any]:
    """Trains in place; a step's loss is the mean over all pairs of its prompts.

    Returns:
        What `train` says of the training, for the stage's figures.

    Raises:
        DataError: there is no pair.
    """
    if not comparisons:
        raise DataError(
            f"{what} has no pair to train on: no comparison orders its completions",
            "look at data/quarantine and metrics/validate-preferences.json",
        )
    key = (run["seed"], what)
    order = Order(len(comparisons), config.batch_size, key)
    total = steps_in(len(comparisons), config.batch_size, config.epochs, config.steps)

    def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
        return parts_of(
            model,
            tokenizer,
            comparisons,
            order.step(step),
            part,
            run["precision"],
            micro_batch_size,
            ranks(),
        )

    return train(
        model,
        config,
        total,
        parts,
        key=key,
        checkpoints=run["checkpoints"],
        recorder=run["recorder"],
        what=what,
        observer=run.get("observer"),
    )


def parts_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    chosen: Sequence[int],
    part: PairsPart,
    precision: str,
    micro_batch_size: int,
    group: Ranks = ALONE,
) -> Iterator[Part]:
    """The parts of a step, or of a whole held-out set, that consists of the comparisons `chosen`.

    Args:
        group: processes that share them.
    """
    count = sum(len(comparisons[i].pairs) for i in chosen)
    for own in chunks(group.share(chosen), micro_batch_size):
        yield part(policy_pairs(model, tokenizer, [comparisons[i] for i in own], precision), own, count)


@torch.no_grad()
def comparison_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    part: PairsPart,
    precision: str,
) -> dict[str, float]:
    """Loss and figures on held-out comparisons; empty without any."""
    model.eval()
    if not comparisons:
        return {}
    every = range(len(comparisons))
    return summed(parts_of(model, tokenizer, comparisons, every, part, precision, 64))


def summed(parts: Iterable[Part]) -> dict[str, float]:
    """Loss and figures of parts together."""
    figures: dict[str, float] = {}
    for part in parts:
        for name, value in {"loss": float(part.loss), **part.metrics}.items():
            figures[name] = figures.get(name, 0.0) + float(value)
    return figures
