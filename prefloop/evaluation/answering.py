"""From evaluation prompts to answers: sampling, and log-probs under the SFT policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.evaluate import EvaluateConfig
from prefloop.data.batching import chunks, pad
from prefloop.errors import ModelError
from prefloop.evaluation.answers import EvaluationPrompt
from prefloop.evaluation.intervals import Floats
from prefloop.models.forward import precision_context, token_logprobs
from prefloop.models.loading import load_policy
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.training.environment import Environment


@dataclass(frozen=True)
class Setting:
    """What every answer of one evaluation has in common.

    Attributes:
        config: section `evaluate`.
        environment: device and precision.
        seed: of the run; a prompt's noise follows from it and the prompt's id, the same for every policy.
        trust_remote_code: let a hub model run its own code.
    """

    config: EvaluateConfig
    environment: Environment
    seed: int
    trust_remote_code: bool = False

    def load(self, folder: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Loads a policy for inference: bf16 weights where the GPU computes in them, float32 elsewhere."""
        gpu = self.environment.device == "cuda"
        dtype = torch.bfloat16 if gpu and self.environment.precision == "bf16" else torch.float32
        return load_policy(
            folder, device=self.environment.device, dtype=dtype, trust_remote_code=self.trust_remote_code
        )


@dataclass(frozen=True)
class Sampled:
    """Answers of one policy before any judge saw them; log_ratio as in `Answers`, shape (N,)."""

    policy: str
    rollouts: Rollouts
    log_ratio: Floats


def sample_policies(
    policy: str, models: Path, prompts: Sequence[EvaluationPrompt], setting: Setting
) -> tuple[Sampled, Sampled]:
    """Samples the policy and the SFT policy on the same prompts with the same noise.

    Args:
        policy: folder name below `models`.
        models: folder that holds the policies, "sft" among them.

    Returns:
        the policy's answers and the SFT policy's: one and the same when it is the policy.

    Raises:
        ModelError: the two policies do not share one vocabulary, so no KL between them exists.
    """
    sft, sft_tokenizer = setting.load(models / "sft")
    baseline = Sampled("sft", _sample(sft, sft_tokenizer, prompts, setting), np.zeros(len(prompts)))
    if policy == "sft":
        return baseline, baseline
    model, tokenizer = setting.load(models / policy)
    if tokenizer.get_vocab() != sft_tokenizer.get_vocab():
        raise ModelError(
            f"{models / policy} and {models / 'sft'} differ in vocabulary: no KL between them exists",
            "both must come from the same base: prefloop run base --force",
        )
    rollouts = _sample(model, tokenizer, prompts, setting)
    own = completion_logprobs(model, tokenizer, rollouts, setting)
    log_ratio = own - completion_logprobs(sft, sft_tokenizer, rollouts, setting)
    return Sampled(policy, rollouts, log_ratio), baseline


def sample_many(
    folder: Path,
    prompts: Sequence[EvaluationPrompt],
    samples: int,
    setting: Setting,
    progress: Callable[[int, int], None],
) -> list[Rollouts]:
    """Several answers a prompt: `samples` rollouts over all prompts. `progress` hears (done, total) prompts.

    All answers to a prompt are sampled together, so that it is read once for them.
    """
    model, tokenizer = setting.load(folder)
    sampler = Sampler(model, tokenizer, setting.config.sampling, setting.environment.precision)
    rounds = [Rollouts() for _ in range(samples)]
    at_once = max(setting.config.batch_size // samples, 1)
    for start in range(0, len(prompts), at_once):
        some = prompts[start : start + at_once]
        keys = [(prompt.id, number) for number in range(samples) for prompt in some]
        sampled = sampler.sample(
            _texts(some) * samples, (setting.seed, "oracle"), keys, batch_size=setting.config.batch_size
        )
        for number, own in enumerate(rounds):
            own.extend(sampled.part(number * len(some), (number + 1) * len(some)))
        progress(start + len(some), len(prompts))
    return rounds


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[EvaluationPrompt],
    setting: Setting,
) -> Rollouts:
    sampler = Sampler(model, tokenizer, setting.config.sampling, setting.environment.precision)
    rows = [(prompt.id,) for prompt in prompts]
    return sampler.sample(
        _texts(prompts), (setting.seed, "evaluate"), rows, batch_size=setting.config.batch_size
    )


def _texts(prompts: Sequence[EvaluationPrompt]) -> list[str | list[dict[str, str]]]:
    return [prompt.prompt for prompt in prompts]


@torch.no_grad()
def completion_logprobs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rollouts: Rollouts, setting: Setting
) -> Floats:
    """Log-probability of each completion, summed over its tokens with the end token: (N,) float64, nats.

    At the temperature of sampling, as the policy drew them; greedy completions are measured at temperature 1.
    """
    sequences = [p + c for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)]
    wanted = [
        [False] * len(p) + [True] * len(c)
        for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)
    ]
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    device, precision = setting.environment.device, setting.environment.precision
    sums = np.zeros(len(sequences))
    for group in chunks(order, setting.config.batch_size):
        batch = pad(
            [sequences[i] for i in group], [wanted[i] for i in group], int(tokenizer.pad_token_id or 0)
        )
        batch = batch.to(device)
        with precision_context(precision, device):
            logprobs, _ = token_logprobs(
                model,
                batch.input_ids,
                batch.attention_mask,
                batch.wanted,
                temperature=setting.config.sampling.temperature or 1.0,
            )
        sums[list(group)] = logprobs.double().sum(dim=-1).cpu().numpy()
    return sums
