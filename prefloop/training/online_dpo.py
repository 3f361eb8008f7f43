"""Online DPO: two completions a prompt from the present policy, the reward says which is better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.objectives.dpo import dpo_loss
from prefloop.objectives.kl import FixedKL
from prefloop.objectives.masked import masked_sum
from prefloop.objectives.online_dpo import preference
from prefloop.training.experience import Experience, behaviour_logprobs, rollout_figures
from prefloop.training.figures import share
from prefloop.training.loop import Part
from prefloop.training.noise import uniforms
from prefloop.training.on_policy import OnPolicyTrainer
from prefloop.training.passes import as_batch


@dataclass(frozen=True)
class PairExperience(Experience):
    """Rows 2i and 2i + 1 are a pair. Adds, each (B,): log-probs of whole completions under the reference, and
    the probability that this one is the better of its pair."""

    reference: Tensor
    preference: Tensor


class OnlineDPOTrainer(OnPolicyTrainer[PairExperience]):
    """Fits a policy by DPO to comparisons of its own completions; see OnPolicyTrainer."""

    name = "online_dpo"
    experience = PairExperience
    together = 2
    config: OnlineDPOConfig

    @property
    def group_size(self) -> int:
        return 2

    def make_controller(self) -> FixedKL:
        return FixedKL(self.config.beta)

    @torch.no_grad()
    def collect(self, step: int) -> tuple[PairExperience, dict[str, float]]:
        """Samples the pairs of 0-based `step` and labels them; with hard labels equal scores are left out."""
        self.policy.eval()
        scored = self.collector.draw(self.order.step(step), step)
        batch = as_batch(scored.rollouts, int(self.tokenizer.pad_token_id)).to(self.device)
        logprobs, entropy = self.policy_logprobs(batch)
        reference = self.reference_logprobs(batch)
        figures = rollout_figures(scored, batch.wanted, logprobs, entropy, reference, self.config.beta)
        behaviour = behaviour_logprobs(scored.rollouts, batch)
        figures |= self.gap.figures(logprobs, behaviour, batch.wanted)
        pairs = scored.scores.view(-1, 2)
        draws = uniforms((*self.key, step, "label"), [(i,) for i in scored.prompts[::2]], 1)[:, 0]
        first = preference(pairs, self.config.labels, draws)
        ties = pairs[:, 0] == pairs[:, 1]
        figures["ties"] = float(ties.float().mean())
        left_out = ties & (self.config.labels == "hard")
        kept = [row for row in range(len(scored.prompts)) if not left_out[row // 2]]
        experience = PairExperience(
            batch,
            logprobs,
            behaviour,
            masked_sum(reference, batch.wanted),
            torch.stack([first, 1 - first], dim=-1).flatten().to(self.device),
        )
        return experience.rows(kept), figures

    def parts(self, experience: PairExperience, rows: Sequence[int], step: int) -> Iterator[Part]:
        """DPO's loss, the mean over the pairs of `rows`."""
        count = len(rows) // 2
        for group in self.passes.groups(experience.batch, rows):
            picked = experience.rows(group)
            logprobs, _ = self.passes.logprobs(self.policy, picked.batch)
            own = masked_sum(logprobs, picked.batch.wanted)
            better = picked.preference[::2]
            terms = dpo_loss(
                own[::2],
                own[1::2],
                picked.reference[::2],
                picked.reference[1::2],
                beta=self.config.beta,
                # The first is taken for the chosen one, and its label for flipped as often as it is not.
                label_smoothing=1 - better,
            )
            loss = terms.loss.sum() / count
            gap = (terms.chosen_reward - terms.rejected_reward) * (2 * better - 1).sign()
            yield Part(
                loss,
                {
                    "loss": loss.detach(),
                    "accuracy": share(gap > 0, count),
                    "margin": share(gap, count),
                },
            )
