"""Forward passes over padded rollouts: in groups of similar length that a micro-batch bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.data.batching import Batch, chunks, length_groups, pad
from prefloop.models.forward import forward_groups, precision_context, token_logprobs
from prefloop.rollout.sampling import Rollouts
from prefloop.training.distribution import ranks
from prefloop.training.memory import MicroBatches
from prefloop.training.retrying import fitted

FORWARD_ROWS = 128
"""Rows of a forward pass without gradient, where `micro_batch_size` sets no limit."""


def as_batch(rollouts: Rollouts, pad_id: int) -> Batch:
    """Prompt and completion end to end, padded on the right; wanted are the completions' tokens."""
    pairs = list(zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True))
    return pad([p + c for p, c in pairs], [[False] * len(p) + [True] * len(c) for p, c in pairs], pad_id)


@dataclass(frozen=True)
class Passes:
    """How rollouts go through a model.

    Attributes:
        device: "cpu" or "cuda". precision: "fp32" or "bf16".
        temperature: logits are divided by it, as when the tokens were sampled.
        micro: units a pass at most; fewer once memory ran out.
        together: rows of a unit, which stand side by side and enter the same pass (2 for pairs).
        model: what most of them go through; it says which rows make up a pass. None: those of like length.
    """

    device: str
    precision: str
    temperature: float
    micro: MicroBatches = field(default_factory=lambda: MicroBatches("passes"))
    together: int = 1
    model: PreTrainedModel | None = None

    def logprobs(
        self,
        model: PreTrainedModel,
        batch: Batch,
        *,
        hidden: Tensor | None = None,
        with_entropy: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies of the wanted tokens, (B, T) each; see `token_logprobs`."""
        with precision_context(self.precision, self.device):
            return token_logprobs(
                model,
                batch.input_ids,
                batch.attention_mask,
                batch.wanted,
                temperature=self.temperature,
                with_entropy=with_entropy,
                hidden=hidden,
            )

    @torch.no_grad()
    def whole(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Log-probs (B, T) of a whole batch's wanted tokens, without gradient."""
        return self.in_groups(batch, lambda part: self.logprobs(model, part)[:1])[0]

    def groups(self, batch: Batch, rows: Sequence[int], limit: int = 0) -> list[list[int]]:
        """Rows for one forward pass each: at most a micro-batch (or `limit` units).

        Of several processes each gets its share of the rows, units kept whole; it may be none.
        """
        lengths = batch.attention_mask.sum(dim=-1).tolist()
        units = [rows[start : start + self.together] for start in range(0, len(rows), self.together)]
        units = ranks().share(units)
        longest = [max(lengths[i] for i in unit) for unit in units]
        return [
            [i for n in group for i in units[micro[n]]]
            for micro in chunks(range(len(units)), self.micro.passes.size or limit)
            for group in self._together([longest[n] for n in micro])
        ]

    def _together(self, lengths: Sequence[int]) -> list[list[int]]:
        if self.model is None:
            return length_groups(lengths, self.device)
        return forward_groups(self.model, lengths)

    def in_groups(self, batch: Batch, compute: Callable[[Batch], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `compute` gives for a whole batch, (B, T) each, computed group by group; 0 beyond a group.

        Of several processes each computes its share and gets the whole.

        Raises:
            TrainingError: a single unit does not fit into memory.
        """
        results: list[Tensor] = []

        def own() -> None:
            results.clear()
            for group in self.groups(batch, range(len(batch.input_ids)), FORWARD_ROWS):
                part = batch.rows(group)
                parts = compute(part)
                if not results:
                    results.extend(x.new_zeros(batch.input_ids.shape) for x in parts)
                for result, x in zip(results, parts, strict=True):
                    result[group, : x.shape[1]] = x
            if not results:  # no row for this process: a pass tells what the others' results look like
                results.extend(x.new_zeros(batch.input_ids.shape) for x in compute(batch.rows([0])))

        units = -(-len(batch.input_ids) // self.together)
        fitted(own, self.micro.passes, min(units, FORWARD_ROWS))
        return tuple(ranks().sum(result) for result in results)
