"""Which weights of a training are kept: the best on held-out prompts within a KL budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from prefloop.config.on_policy import OnPolicyConfig
from prefloop.models.adapters import reference_mode
from prefloop.objectives.masked import masked_sum
from prefloop.rewards.sources import RewardSum
from prefloop.rollout.engine import Engine
from prefloop.training.checkpoints import load_trainable, trainable_state
from prefloop.training.experience import sample_and_score
from prefloop.training.looks import LOOKS, Row, apart, look_rows, passes_mark
from prefloop.training.noise import Key
from prefloop.training.passes import Passes, as_batch


def hold_out(prompts: Sequence[Row], config: OnPolicyConfig, key: Key) -> tuple[list[Row], list[Row]]:
    """Prompts to sample from, and those held out (at most a quarter; none without a KL budget)."""
    held = min(config.select_prompts, len(prompts) // 4) if config.select_kl else 0
    return apart(prompts, held, (*key, "held out"))


class Selection:
    """Looks at the policy on held-out prompts from time to time and keeps the best weights.

    Args:
        policy: being trained. reference: what its KL is measured to. engine: has the policy's weights when
            `look` is called.
        held_out: prompts that no rollout is sampled from; without any, the last weights are kept.
        key: of the training, such as (seed, "ppo"). Every look draws with the same noise.

    Attributes:
        best: step, score, kl and weights of the best look so far; empty before the first.
        looks: rows of a few looks, evenly spread; see `prefloop.training.looks.look_rows`.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        engine: Engine,
        rewards: RewardSum,
        passes: Passes,
        held_out: Sequence[Row],
        config: OnPolicyConfig,
        key: Key,
    ) -> None:
        self.policy, self.reference, self.engine = policy, reference, engine
        self.rewards, self.passes, self.config, self.key = rewards, passes, config, key
        self.held_out, self.prompts = held_out, [row["prompt"] for row in held_out]
        self.best: dict[str, Any] = {}
        self.looks: list[dict[str, Any]] = []

    def due(self, step: int) -> bool:
        """True after the 1-based steps that look: every `select_every`, and the last."""
        last = step == self.config.steps
        return bool(self.prompts) and (step % self.config.select_every == 0 or last)

    @torch.no_grad()
    def look(self, step: int) -> dict[str, float]:
        """Scores the policy on held-out prompts; keeps weights that none within the KL budget beat."""
        self.policy.eval()
        noise = [(*self.key, "select", i) for i in range(len(self.prompts))]
        rollouts, scores, _ = sample_and_score(
            self.engine, self.rewards, self.prompts, (), noise, self.passes.micro
        )
        pad_id = int(self.engine.tokenizer.pad_token_id)
        batch = as_batch(rollouts, pad_id).to(self.passes.device)
        own = self.passes.whole(self.policy, batch)
        with reference_mode(self.reference):
            reference = self.passes.whole(self.reference, batch)
        kl = float(masked_sum(own - reference, batch.wanted).sum()) / len(self.prompts)
        mean = float(scores.mean())
        if passes_mark(step, self.config.steps, LOOKS, self.config.select_every):
            summed = masked_sum(own, batch.wanted)
            self.looks += look_rows(step, self.held_out, rollouts, summed, noise, self.config.sampling)
        # Within the budget the higher score wins; while nothing is within it, the lower KL.
        rank = [1.0, mean] if kl <= self.config.select_kl else [0.0, -kl]
        if not self.best or rank > self.best["rank"]:
            self.best = {
                "rank": rank,
                "step": step,
                "score": mean,
                "kl": kl,
                "policy": trainable_state(self.policy),
            }
        return {"select/score": mean, "select/kl": kl, "select/best_step": float(self.best["step"])}

    def restore(self) -> None:
        """Gives the policy the weights that were kept."""
        if self.best:
            load_trainable(self.policy, self.best["policy"], str(self.key[-1]))

    def figures(self) -> dict[str, float]:
        """`chosen_step`, and held-out `score` and `kl` (nats) of its weights; without looks the last step."""
        if not self.best:
            return {"chosen_step": self.config.steps}
        return {"chosen_step": self.best["step"], "score": self.best["score"], "kl": self.best["kl"]}
