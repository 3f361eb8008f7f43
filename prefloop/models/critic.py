"""Critics: a value for each state in which a policy chooses a token."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.ppo import PPOConfig
from prefloop.data.batching import Batch
from prefloop.models.forward import hidden_states, preceding
from prefloop.models.heads import read
from prefloop.models.loading import embedding_shape
from prefloop.models.reward_model import RewardModel


class Critic(nn.Module):
    """A value head, on a trunk of its own or on the policy's.

    Args:
        source: model whose trunk is copied; None makes a head alone, for a trunk shared with the policy.
        width: hidden size. The head starts at 0, so that the first advantages are the rewards themselves.
    """

    def __init__(self, source: PreTrainedModel | None, width: int) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(source) if source is not None else None
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if self.trunk is not None:
            for parameter in self.trunk.parameters():
                parameter.requires_grad_(True)
            for name in ("score", "lm_head", "classifier"):
                # The source's own head takes no part; a tied one is part of the trunk.
                unused = getattr(self.trunk, name, None)
                embedding = self.trunk.get_input_embeddings()
                if isinstance(unused, nn.Module) and getattr(unused, "weight", None) is not embedding.weight:
                    for parameter in unused.parameters():
                        parameter.requires_grad_(False)

    def forward(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """V of the state before each wanted token: (B, T) float32, 0 elsewhere.

        Args:
            batch: the first column is never wanted.
            hidden: (B, T, D), the policy's trunk output, for a shared critic.
        """
        if hidden is None:
            assert self.trunk is not None, "a shared critic needs the policy's hidden states"
            wanted = preceding(batch.wanted)
            hidden = hidden_states(self.trunk, batch.input_ids, batch.attention_mask, wanted=wanted)
        values = read(self.head, hidden.to(self.head.weight.dtype)).squeeze(-1).float()
        shifted = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)
        return torch.where(batch.wanted, shifted, torch.zeros_like(shifted))


def make_critic(
    config: PPOConfig, policy: PreTrainedModel, reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase
) -> Critic:
    """The critic that the section `ppo` asks for.

    A separate one starts from the reward model's trunk (Ouyang et al. 2022, appendix C.4) where that reads
    the policy's tokens; from the policy's where the reward model has a tokenizer or architecture of its own.
    """
    width = embedding_shape(policy)[1]
    if config.critic == "shared":
        return Critic(None, width)
    same_tokens = reward_model.tokenizer.get_vocab() == tokenizer.get_vocab()
    if config.critic_base == "reward" and same_tokens and not reward_model.encoder_only:
        return Critic(reward_model.model, embedding_shape(reward_model.model)[1])
    return Critic(policy, width)
