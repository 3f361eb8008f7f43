"""What an on-policy method learns from: sampled completions, their scores, and the figures they give."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from prefloop.data.batching import Batch
from prefloop.objectives.masked import masked_mean, masked_sum
from prefloop.rewards.sources import RewardSum
from prefloop.rollout.engine import Engine
from prefloop.rollout.sampling import SAMPLED_AT_ONCE, Rollouts
from prefloop.training.distribution import ranks
from prefloop.training.memory import MicroBatches
from prefloop.training.noise import Key
from prefloop.training.retrying import fitted

SCORED_AT_ONCE = 128
"""Completions that a reward model scores at once by itself."""


@dataclass
class Scored:
    """Completions and what they are worth; those of one prompt stand side by side.

    Attributes:
        prompts: index of each completion's prompt, B of them.
        rollouts: tokens and texts.
        scores: (B,) float32 on the CPU. parts: name of a reward source -> its scores before the weight.
    """

    prompts: list[int]
    rollouts: Rollouts
    scores: Tensor
    parts: dict[str, Tensor]

    def extend(self, other: Scored) -> None:
        """Takes in further completions."""
        self.prompts += other.prompts
        self.rollouts.extend(other.rollouts)
        self.scores = torch.cat([self.scores, other.scores])
        self.parts = {name: torch.cat([part, other.parts[name]]) for name, part in self.parts.items()}


class Collector:
    """Samples a group of completions for each prompt and scores them.

    Args:
        prompts: rows of data/validated/prompts.jsonl.
        group_size: completions a prompt.
        key: what the draws are for, such as (seed, "ppo"). A draw is keyed by it, the step, the prompt's
            index and the completion's number in its group: never by a place in a batch.
        micro: how many completions are sampled and scored at once.
    """

    def __init__(
        self,
        engine: Engine,
        rewards: RewardSum,
        prompts: Sequence[Mapping[str, Any]],
        group_size: int,
        key: Key,
        micro: MicroBatches,
    ) -> None:
        self.engine, self.rewards, self.prompts = engine, rewards, prompts
        self.group_size, self.key, self.micro = group_size, key, micro

    def draw(self, indices: Sequence[int], step: int) -> Scored:
        """`group_size` completions of each prompt in `indices`, group by group, for 0-based `step`."""
        rows = [(i, sample) for i in indices for sample in range(self.group_size)]
        asked = [self.prompts[i]["prompt"] for i, _ in rows]
        rollouts, scores, parts = sample_and_score(
            self.engine, self.rewards, asked, (*self.key, step), rows, self.micro
        )
        return Scored([i for i, _ in rows], rollouts, scores, parts)


def sample_and_score(
    engine: Engine,
    rewards: RewardSum,
    asked: Sequence[Any],
    key: Key,
    rows: Sequence[Key],
    micro: MicroBatches,
) -> tuple[Rollouts, Tensor, dict[str, Tensor]]:
    """A completion of each prompt and its score, as `Engine.sample` and `RewardSum.score` give them.

    Of several processes each samples and scores its share and gets the whole: a draw is keyed by its row, so
    it does not matter who makes it, nor beside which others.

    Args:
        micro: how many completions are sampled and scored at once; fewer once memory ran out.

    Raises:
        TrainingError: memory runs out with a single one.
    """
    group = ranks()
    prompts, keys = group.share(asked), group.share(rows)
    sampled = fitted(
        lambda: engine.sample(prompts, key, keys, batch_size=micro.sampled.size),
        micro.sampled,
        min(len(asked), SAMPLED_AT_ONCE),
    )
    mine = sampled[group.rank]

    def score() -> tuple[Tensor, dict[str, Tensor]]:
        if not prompts:
            return torch.zeros(0), {}
        return rewards.score(prompts, mine.texts, mine.ended, mine.lengths, micro.scored.size)

    scored = fitted(score, micro.scored, min(len(asked), SCORED_AT_ONCE))
    if group.count == 1:
        return mine, *scored[0]
    names = [field.name for field in dataclasses.fields(Rollouts)]
    rollouts = Rollouts(**{n: group.woven([getattr(share, n) for share in sampled]) for n in names})
    scores = torch.stack(group.woven([list(scores) for scores, _ in scored]))
    parts = {
        name: torch.stack(group.woven([list(parts.get(name, ())) for _, parts in scored]))
        for name in scored[0][1]
    }
    return rollouts, scores, parts


def behaviour_logprobs(rollouts: Rollouts, batch: Batch) -> Tensor:
    """What the engine said of each token that it drew: (B, T) float32 beside `as_batch`'s, 0 elsewhere."""
    said = torch.tensor([value for row in rollouts.logprobs for value in row], dtype=torch.float32)
    wanted = batch.wanted
    return torch.zeros(wanted.shape, device=wanted.device).masked_scatter(wanted, said.to(wanted.device))


@dataclass(frozen=True)
class Experience:
    """One rollout batch, ready to learn from. A method's own class adds tensors of (B, T) or (B,).

    Attributes:
        batch: prompt + completion; `batch.wanted` is True on completion tokens, the end token included.
        logprobs: (B, T) of the sampled tokens under the policy that sampled them, computed by the trainer.
        behaviour: (B, T), the same as the engine that sampled them has it.
    """

    batch: Batch
    logprobs: Tensor
    behaviour: Tensor

    def __len__(self) -> int:
        return len(self.logprobs)

    def rows(self, index: Sequence[int]) -> Self:
        """Some rows, cut to the longest of them."""
        index = list(index)
        batch = self.batch.rows(index)
        width = batch.input_ids.shape[1]
        return type(self)(
            batch, **{n: x[index, :width] if x.ndim == 2 else x[index] for n, x in self._tensors().items()}
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by name, for a checkpoint between two updates."""
        return {**{f.name: getattr(self.batch, f.name) for f in dataclasses.fields(Batch)}, **self._tensors()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], device: str) -> Self:
        """What `state_dict` was taken from."""
        names = {field.name for field in dataclasses.fields(Batch)}
        batch = Batch(**{name: state[name] for name in names}).to(device)
        return cls(batch, **{name: x.to(device) for name, x in state.items() if name not in names})

    def _tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "batch"}


E = TypeVar("E", bound=Experience)


@dataclass
class Learning(Generic[E]):
    """How far the learning from one rollout batch has come: all that a checkpoint between two updates needs.

    Attributes:
        experience: the rollout batch. figures: what was measured while it was collected.
        totals: sums of the updates' figures. done: updates so far.
        epoch_kl: approximate KL old/new, mean over this inner epoch's updates so far.
        finished: no update follows.
    """

    experience: E
    figures: dict[str, float]
    totals: dict[str, float] = field(default_factory=dict)
    done: int = 0
    epoch_kl: float = 0.0
    finished: bool = False

    def __post_init__(self) -> None:
        self.finished = self.finished or len(self.experience) == 0

    def means(self) -> dict[str, float]:
        """The updates' figures, averaged, and how many there were."""
        return {**{name: x / self.done for name, x in self.totals.items()}, "updates": float(self.done)}


def rollout_figures(
    scored: Scored, mask: Tensor, logprobs: Tensor, entropy: Tensor, reference: Tensor | None, beta: float
) -> dict[str, float]:
    """Figures of a rollout batch, as the methods' pages define them.

    Args:
        mask: (B, T) bool, True on completion tokens.
        logprobs, entropy: (B, T) float under the policy that sampled; reference: likewise, None without one.
        beta: the KL's weight.
    """
    scores, texts, ended = scored.scores, scored.rollouts.texts, scored.rollouts.ended
    kl = {} if reference is None else {"objective/kl": float(masked_sum(logprobs - reference, mask).mean())}
    learned = scored.parts.get("reward_model")
    constant = {} if learned is None else {"constant": float(len(learned) > 1 and len(learned.unique()) == 1)}
    return {
        "score": float(scores.mean()),
        "score_std": float(scores.std()) if len(scores) > 1 else 0.0,
        **{f"reward/{name}": float(part.mean()) for name, part in scored.parts.items()},
        **constant,
        **kl,
        "objective/return": float(scores.mean()) - beta * kl.get("objective/kl", 0.0),
        "beta": beta,
        "entropy": float(masked_mean(entropy, mask)),
        "length": float(mask.sum(dim=-1).float().mean()),
        "ended": sum(ended) / len(ended),
        "unique": len(set(texts)) / len(texts),
    }
