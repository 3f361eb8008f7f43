"""Reward models: a trunk of any architecture with one score, its own tokenizer and scale; or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.data.batching import length_groups, pad
from prefloop.data.templates import Message, as_messages, render
from prefloop.errors import ModelError
from prefloop.files import read_json, write_json
from prefloop.models.adapters import plain
from prefloop.models.classifiers import draw_head, heads_of, is_causal, load_classifier, score_head
from prefloop.models.forward import positions, precision_context
from prefloop.models.loading import context_length, to_device
from prefloop.models.ragged import reads_flat
from prefloop.models.reward_normalisation import Normalisation
from prefloop.models.saving import write_card
from prefloop.models.shared_prompt import Tree, can_share, tree_scores
from prefloop.training.noise import Key, torch_seed

_NORMALISATION = "reward_normalisation.json"
Prompt = str | Sequence[Message]


class RewardModel(nn.Module):
    """Scores a completion in the light of its prompt; an ensemble's members all do, and are aggregated.

    Args:
        model: sequence classifier with one label, or with one a member on a shared trunk.
        tokenizer: its tokenizer.
        others: further members with a trunk of their own, of the same architecture and tokenizer.
        normalisation: from raw scores to what `score` gives.
        precision: "fp32" or "bf16".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        others: Sequence[PreTrainedModel] = (),
        normalisation: Normalisation | None = None,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        self.others = nn.ModuleList(others)
        self.normalisation = normalisation or Normalisation(members=((0.0, 1.0),) * self.members)
        self.encoder_only = not getattr(model.config, "is_decoder", False) and not is_causal(model)
        self.max_length = min(context_length(model), int(tokenizer.model_max_length))
        if self.encoder_only:
            # BERT-like position tables; what lies beyond is cut at the beginning, never at the answer.
            self.max_length = min(self.max_length, 512)
            tokenizer.truncation_side = "left"

    @property
    def members(self) -> int:
        """How many score."""
        return heads_of(self.model) + len(self.others)

    @property
    def _models(self) -> list[PreTrainedModel]:
        return [self.model, *cast(Iterable[PreTrainedModel], self.others)]

    @property
    def _reads_flat(self) -> bool:
        """True where scores can be read from sequences end to end, without padding."""
        return (
            not self.encoder_only
            and reads_flat(plain(self.model).base_model)
            and can_share(self.model, int(self.tokenizer.pad_token_id))
        )

    def encode(self, prompt: Prompt, completion: Prompt, max_length: int = 0) -> list[int]:
        """Tokens of the whole conversation; a longer one loses its beginning."""
        messages = [*as_messages(prompt), *as_messages(completion, "assistant")]
        text = render(self.tokenizer, messages).rstrip("\n")
        limit = min(max_length or self.max_length, self.max_length)
        if self.encoder_only:
            # It expects the special tokens around a text that its tokenizer puts there.
            return list(self.tokenizer(text, truncation=True, max_length=limit)["input_ids"])
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][-limit:])

    def completion_tokens(self, completion: Prompt) -> int:
        """Length of what a completion says, without the template around it (tokens)."""
        said = " ".join(message["content"] for message in as_messages(completion, "assistant"))
        return len(self.tokenizer(said, add_special_tokens=False, verbose=False)["input_ids"])

    def forward(self, sequences: Sequence[Sequence[int]]) -> Tensor:
        """Raw scores of encoded conversations: (B, M) float32, read at the last real token of a decoder."""
        if self._reads_flat:
            # Ragged sequences are trees of one branch.
            trees, pad_id = [Tree([], [ids]) for ids in sequences], int(self.tokenizer.pad_token_id)
            found = [tree_scores(model, trees, pad_id, self.precision) for model in self._models]
            return torch.cat(found, dim=1)
        groups = length_groups([len(ids) for ids in sequences], self.model.device.type)
        place = torch.tensor([i for group in groups for i in group], device=self.model.device)
        members = []
        for model in self._models:
            scores = torch.cat([self._scores(model, [sequences[i] for i in group]) for group in groups])
            members.append(torch.zeros_like(scores).index_copy(0, place, scores))
        return torch.cat(members, dim=1)

    def _scores(self, model: nn.Module, sequences: Sequence[Sequence[int]]) -> Tensor:
        device = self.model.device
        batch = pad(sequences, [[True] * len(ids) for ids in sequences], int(self.tokenizer.pad_token_id))
        batch = batch.to(device.type)
        extra = (
            {} if self.encoder_only else {"position_ids": positions(batch.attention_mask), "use_cache": False}
        )
        with precision_context(self.precision, device.type):
            logits: Tensor = model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), **extra
            ).logits
        return logits.float()

    @torch.no_grad()
    def raw(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], batch_size: int = 128) -> Tensor:
        """Raw scores of every member: (B, M) float32 on the CPU.

        Raises:
            ModelError: a score is NaN or infinite.
        """
        encoded = [self.encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]), i))
        scores = torch.zeros(len(encoded), self.members)
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            scores[group] = self([encoded[i] for i in group]).cpu()
        if not torch.isfinite(scores).all():
            raise ModelError(
                "the reward model gave a NaN or infinite score", "train it again at a lower learning rate"
            )
        return scores

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], batch_size: int = 128
    ) -> Tensor:
        """Rewards of completions, members aggregated: (B,) float32 on the CPU.

        Raises:
            ModelError: a score is NaN or infinite.
        """
        raw = self.raw(prompts, completions, batch_size)
        lengths = None
        if self.normalisation.needs_length:
            lengths = [self.completion_tokens(completion) for completion in completions]
        return self.normalisation.apply(raw, lengths)

    def member_scores(
        self, prompts: Sequence[Prompt], completions: Sequence[Prompt], batch_size: int = 128
    ) -> Tensor:
        """Each member's scores before they are aggregated, on a common scale: (B, M) float32 on the CPU."""
        return self.normalisation.standardise(self.raw(prompts, completions, batch_size))

    def save(self, folder: Path, card: Mapping[str, object] | None = None) -> None:
        """Writes a folder that AutoModelForSequenceClassification loads, with the normalisation beside it.

        Separate members from the second on stand in folders of the same kind within it, `member-1` and so on.

        Args:
            card: facts for README.md, see `write_card`.
        """
        for number, model in enumerate((self.model, *self.others)):
            place = folder / f"member-{number}" if number else folder
            model.save_pretrained(place, safe_serialization=True)
            self.tokenizer.save_pretrained(place)
            own = self.normalisation
            if number:
                mean, std = own.members[number]
                own = Normalisation(mean=mean, std=std)
            write_json(place / _NORMALISATION, own.as_json())
        write_card(folder, card)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        trust_remote_code: bool = False,
    ) -> RewardModel:
        """Reads what `save` wrote, an ensemble with all its members.

        Raises:
            ModelError: no such model, or members are missing; DataError: the normalisation is missing.
        """
        model, tokenizer = load_classifier(str(folder), None, trust_remote_code)
        where = Path(folder) / _NORMALISATION
        normalisation = Normalisation.from_json(read_json(where), str(where))
        heads, members = heads_of(model), len(normalisation.members)
        if heads not in (1, members):
            raise ModelError(f"{folder} has {heads} scores, and {where.name} speaks of {members}")
        others = []
        for number in range(1, members if heads == 1 else 1):
            place = Path(folder) / f"member-{number}"
            if not place.is_dir():
                raise ModelError(
                    f"{folder} is an ensemble of {members} whose {place.name} is missing",
                    "restore the folder, or train the reward model again",
                )
            others.append(to_device(load_classifier(str(place), None, trust_remote_code)[0], device))
        return cls(
            to_device(model, device),
            tokenizer,
            others=others,
            normalisation=normalisation,
            precision=precision,
        ).eval()

    @classmethod
    def create(
        cls,
        trunk: str | Path,
        *,
        seed: int,
        device: str = "cpu",
        precision: str = "fp32",
        revision: str | None = None,
        trust_remote_code: bool = False,
        member: int = 0,
        heads: int = 1,
    ) -> RewardModel:
        """A reward model on the trunk of any encoder or decoder; a head has std 1/sqrt(d + 1), bias 0.

        Args:
            member: its number in an ensemble, from which its head is drawn. heads: how many members share
                the trunk, numbered from there on.
        """
        # Weights that the trunk lacks (an encoder's pooler, a row for a pad token) are drawn while it loads.
        torch_seed((seed, "reward", "trunk"))
        model, tokenizer = load_classifier(str(trunk), revision, trust_remote_code, labels=heads)
        draw_head(score_head(model), [_head_key(seed, number) for number in range(member, member + heads)])
        return cls(to_device(model, device), tokenizer, precision=precision)


def _head_key(seed: int, member: int) -> Key:
    # A single model's head has the key that it had before there were ensembles.
    return (seed, "reward", "head", member) if member else (seed, "reward", "head")
