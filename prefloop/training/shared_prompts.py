"""Which rows of a training are encoded as trees, their prompts once for all completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.direct import PairwiseConfig
from prefloop.config.reward import RewardConfig
from prefloop.data.templates import Encoded
from prefloop.models.adapters import plain
from prefloop.models.loading import embedding_shape
from prefloop.models.ragged import reads_flat
from prefloop.models.shared_prompt import Tokens, Tree, can_share, trees_of
from prefloop.training.pairs import EncodedComparison


def forest_of(
    model: PreTrainedModel,
    pad_id: int,
    rows: Sequence[Sequence[Tokens]],
    config: RewardConfig | PairwiseConfig,
    longest: Sequence[int] | None = None,
) -> list[list[Tree]] | None:
    """Each row's conversations as trees that encode its prompt once; None where none is to be shared.

    With dropout there are none: a conversation's masks are its own, its prompt's included.

    Args:
        rows: for each prompt its conversations in tokens.
        longest: for each prompt the tokens at the beginning that may be shared at most.
    """
    unmeasured = config.share_prompt == "auto" and model.device.type != "cpu"
    if (
        config.share_prompt == "off"
        or (config.lora.rank and config.lora.dropout)
        or unmeasured
        or not can_share(model, pad_id)
    ):
        return None
    # End to end, a prefix costs attention what it costs without sharing, and everything else less.
    always = config.share_prompt == "on" or reads_flat(plain(model).base_model)
    width = embedding_shape(model)[1]
    limits: Sequence[int | None] = longest or [None] * len(rows)
    forest = [
        trees_of(row, width, always=always, longest=limit) for row, limit in zip(rows, limits, strict=True)
    ]
    return forest if any(len(trees[0].branches) > 1 for trees in forest) else None


def with_shared_prompts(
    comparisons: Sequence[EncodedComparison],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: PairwiseConfig,
) -> list[EncodedComparison]:
    """Comparisons with the trees that `config.share_prompt` asks for; those that have some stay as they are.

    What is trainable is shared by no completions, even where they begin alike.
    """
    comparisons = list(comparisons)
    if not comparisons or any(comparison.trees for comparison in comparisons):
        return comparisons
    rows = [[row.input_ids for row in comparison.completions] for comparison in comparisons]
    fixed = [min(map(_fixed, comparison.completions)) for comparison in comparisons]
    forest = forest_of(model, int(tokenizer.pad_token_id), rows, config, fixed)
    if forest is None:
        return comparisons
    return [replace(comparison, trees=trees) for comparison, trees in zip(comparisons, forest, strict=True)]


def _fixed(row: Encoded) -> int:
    """Tokens before the first that is trainable."""
    return row.trainable.index(True) if any(row.trainable) else len(row.trainable)
