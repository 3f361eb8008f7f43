"""What the trainings on preferences share: log-probs of completions and of pairs, figures, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.direct import PairwiseConfig
from prefloop.data.batching import Order, chunks, collate, steps_in
from prefloop.data.templates import Encoded
from prefloop.errors import DataError
from prefloop.models.forward import in_passes, precision_context, token_logprobs
from prefloop.models.shared_prompt import Tree, tree_logprobs
from prefloop.objectives.completions import PairTerms, mean_logprob
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.distribution import ALONE, Ranks, ranks
from prefloop.training.figures import share, totals
from prefloop.training.loop import Observer, Part, train
from prefloop.training.pairs import EncodedComparison
from prefloop.training.recorder import Recorder
from prefloop.training.shared_prompts import with_shared_prompts


def completion_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    precision: str,
    trees: Sequence[Tree] = (),
) -> tuple[Tensor, Tensor]:
    """Log-probs SUMMED over each completion, (B,), and completion lengths (B,) in tokens.

    Args:
        trees: the rows as branches, in order, with no trainable token in a prefix; none encodes each apart.
    """
    if any(len(tree.branches) > 1 for tree in trees):
        branches = [branch for tree in trees for branch in tree.branches]
        wanted = [row.trainable[-len(branch) :] for row, branch in zip(rows, branches, strict=True)]
        found = tree_logprobs(model, trees, wanted, int(tokenizer.pad_token_id), precision)
        return found, torch.tensor([sum(flags) for flags in wanted], device=found.device)
    device = model.device.type
    batch = collate(rows, tokenizer).to(device)

    def of_group(group: list[int]) -> Tensor:
        part = batch.rows(group)
        with precision_context(precision, device):
            logprobs, _ = token_logprobs(model, part.input_ids, part.attention_mask, part.wanted)
        return logprobs.sum(dim=-1)

    together, order = in_passes(model, batch.attention_mask.sum(dim=-1).tolist(), of_group)
    place = torch.tensor(order, device=device)
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

    def logprob_figures(self, count: int) -> dict[str, Tensor]:
        """The share, in a step of `count` pairs, of what to watch: both falling together says that the policy
        moves away from all that it was shown."""
        return {
            "chosen_logprob": share(self.chosen, count),
            "rejected_logprob": share(self.rejected, count),
            "chosen_nll": -share(self.chosen_mean, count),
        }


def policy_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    precision: str,
) -> PolicyPairs:
    """Runs each completion once and puts its log-prob into all its pairs."""
    rows = [row for comparison in comparisons for row in comparison.completions]
    trees = [tree for comparison in comparisons for tree in comparison.trees]
    sums, lengths = completion_logprobs(model, tokenizer, rows, precision, trees)
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
            "accuracy": share(gap > 0, count),
            "margin": share(gap, count),
            "chosen_reward": share(terms.chosen_reward, count),
            "rejected_reward": share(terms.rejected_reward, count),
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
    comparisons = with_shared_prompts(comparisons, model, tokenizer, config)
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
    return totals({"loss": part.loss.detach(), **part.metrics} for part in parts)
