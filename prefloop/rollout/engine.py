"""What every generation engine offers a trainer, and which one a section asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.scoring import ScoringConfig
from prefloop.data.templates import Messages
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.rollout.vllm_engine import VLLMEngine
from prefloop.training.noise import Key


class Engine(Protocol):
    """Samples completions from a version of the policy's weights.

    The log-probs that it gives with its tokens tell how far it is from the trainer; what is learned from are
    always the trainer's own.

    Attributes:
        tokenizer: what prompts are encoded with.
        version: of the weights it samples from; those that it was made with are 0.
    """

    tokenizer: PreTrainedTokenizerBase
    version: int

    def sample(
        self,
        prompts: Sequence[str | Messages],
        key: Key,
        rows: Sequence[Key] | None = None,
        batch_size: int = 0,
    ) -> Rollouts:
        """One completion a prompt, in the prompts' order.

        Args:
            prompts: strings (one user turn) or messages.
            key: what the draws are for, such as (seed, "ppo", step).
            rows: one key a prompt, such as (prompt index, sample index); the place in the list by default.
            batch_size: completions at once, for an engine that leaves it to the trainer; 0 is its own choice.
        """
        ...

    def update(self, model: PreTrainedModel, version: int) -> None:
        """Takes over the model's weights, which are of `version`: rollout batches they have learned from."""
        ...

    def close(self) -> None:
        """Gives back what the engine holds; it samples no more."""
        ...


def make_engine(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ScoringConfig, precision: str = "fp32"
) -> Engine:
    """The engine that a section's `engine` names.

    Args:
        model: the policy; an adapter on it counts. precision: "fp32" or "bf16".

    Raises:
        ConfigError: the longest completion fills the model's context, or the engine cannot run here.
    """
    if config.engine == "vllm":
        return VLLMEngine(model, tokenizer, config.sampling, precision, config.engine_memory)
    return Sampler(model, tokenizer, config.sampling, precision)
