"""Comparisons in tokens, the pairs that they make up, and what `max_length` cut of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prefloop.config.direct import PairwiseConfig
from prefloop.data.comparisons import Ranking
from prefloop.data.templates import ChatEncoder, Encoded
from prefloop.errors import DataError
from prefloop.models.shared_prompt import Tree


@dataclass(frozen=True)
class EncodedComparison:
    """The completions of one prompt in tokens, each once, and the pairs they make up.

    Attributes:
        completions: those that enter a pair.
        pairs: (better, worse) indices into `completions`.
        probability: the label's softness, 1 for a plain label.
        trees: the completions' conversations, in order, where their prompts are encoded once; see
            `prefloop.training.shared_prompts`.
    """

    completions: list[Encoded]
    pairs: list[tuple[int, int]]
    probability: float
    trees: Sequence[Tree] = ()


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
