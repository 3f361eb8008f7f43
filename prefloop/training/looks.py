"""Looks at a policy on its way: what it answers to a few held-out prompts, for its curve of gold against KL.

A look draws with noise of its own and leaves the training as it found it. Its rows hold what judges and the
SFT policy need to score them once everything is trained, so that no second model runs beside the training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rollout import SamplingConfig
from prefloop.objectives.masked import masked_sum
from prefloop.rollout.sampling import SAMPLED_AT_ONCE, Rollouts, Sampler
from prefloop.training.distribution import ranks
from prefloop.training.memory import MicroBatches
from prefloop.training.noise import Key, permutation
from prefloop.training.passes import Passes, as_batch
from prefloop.training.retrying import fitted

Row = Mapping[str, Any]
LOOKS = 5
"""Looks of a training that are kept where no knob says how many."""


def passes_mark(step: int, total: int, marks: int, every: int = 1) -> bool:
    """True where one of `marks`, spread evenly over `total` steps up to the last one, is passed.

    Args:
        step: 1-based, a multiple of `every` or the last. every: steps between two that are asked about.
    """
    before = (step - 1) // every * every
    return step * marks // total > before * marks // total


def apart(prompts: Sequence[Row], count: int, key: Key) -> tuple[list[Row], list[Row]]:
    """The other prompts, and `count` of them that the key chooses, each in their order."""
    shuffled = permutation(key, len(prompts))
    return [prompts[i] for i in sorted(shuffled[count:])], [prompts[i] for i in sorted(shuffled[:count])]


def look_rows(
    step: int,
    prompts: Sequence[Row],
    rollouts: Rollouts,
    logprobs: Tensor,
    noise: Sequence[Key],
    sampling: SamplingConfig,
) -> list[dict[str, Any]]:
    """One JSON row an answer.

    Args:
        step: 1-based, after which the policy answered.
        prompts: rows of data/validated/prompts.jsonl.
        logprobs: (B,) of each completion under the policy, summed over its tokens (nats), at the temperature
            of `sampling`.
        noise: the whole key of each draw: with it another policy draws with the same noise.
    """
    summed = logprobs.double().tolist()
    return [
        {
            "step": step,
            "id": row.get("id"),
            "prompt": row["prompt"],
            "completion": rollouts.texts[i],
            "completion_ids": rollouts.completion_ids[i],
            "ended": rollouts.ended[i],
            "logprob": round(summed[i], 6),
            "noise": list(noise[i]),
            "sampling": asdict(sampling),
        }
        for i, row in enumerate(prompts)
    ]


class Looks:
    """An `Observer` whose policy answers the same prompts with the same noise each time.

    Args:
        policy: being trained. prompts: rows that it answers; without any it is never looked at.
        looks: in a training. seed: of the run; a prompt's noise follows from it and the prompt's id, so that
            every policy that is looked at so draws alike.
        micro_batch_size: completions a forward pass; 0 sets no limit.

    Attributes:
        rows: see `look_rows`, of all looks so far.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Row],
        sampling: SamplingConfig,
        looks: int,
        *,
        seed: int,
        precision: str = "fp32",
        micro_batch_size: int = 0,
    ) -> None:
        self.policy, self.prompts, self.looks = policy, prompts, looks
        self.sampler = Sampler(policy, tokenizer, sampling, precision)
        self.micro = MicroBatches("a look at the policy", micro_batch_size)
        self.passes = Passes(policy.device.type, precision, sampling.temperature, self.micro, model=policy)
        self.noise: list[Key] = [(seed, "looks", str(row.get("id", i))) for i, row in enumerate(prompts)]
        self.rows: list[dict[str, Any]] = []

    def due(self, step: int, total: int) -> bool:
        """True after the steps that look."""
        return bool(self.prompts) and passes_mark(step, total, self.looks)

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Lets the policy answer; mean length (tokens), the share that ended, and sizes that memory reduced.

        Raises:
            TrainingError: a single answer does not fit into memory.
        """
        training = self.policy.training
        self.policy.eval()
        asked, sampled = [row["prompt"] for row in self.prompts], self.micro.sampled
        held = min(len(asked), SAMPLED_AT_ONCE)
        rollouts = fitted(
            lambda: self.sampler.sample(asked, (), self.noise, batch_size=sampled.size), sampled, held
        )[ranks().rank]
        batch = as_batch(rollouts, int(self.sampler.tokenizer.pad_token_id)).to(self.passes.device)
        logprobs = self.passes.whole(self.policy, batch)
        self.policy.train(training)
        summed = masked_sum(logprobs, batch.wanted)
        self.rows += look_rows(step, self.prompts, rollouts, summed, self.noise, self.sampler.config)
        count = len(self.prompts)
        return {
            "look/length": sum(rollouts.lengths) / count,
            "look/ended": sum(rollouts.ended) / count,
            **{f"look/{name}": size for name, size in self.micro.figures().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "micro_batches": self.micro.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])
        self.micro.load_state_dict(state["micro_batches"])
