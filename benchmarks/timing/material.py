"""Synthetic conversations of known lengths, a tokenizer of whole words, and random models that stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.alongside.material import SEED, Material
from benchmarks.timing.sizes import Lengths, Size
from prefloop.data.default_templates import ROLE_TOKENS
from prefloop.models.creating import create_model, with_roles
from prefloop.models.forward import hidden_states
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.training.noise import generator

READING = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "gate", "up"))
WRITING = ("o_proj.weight", "down_proj.weight")
"""Matrices of a block whose input, or output, is the residual stream."""


def make(folder: Path, size: Size, lengths: Lengths, rows: int) -> Material:
    """Writes a policy, float32, and a reward model on its trunk; gives `rows` conversations beside."""
    tokenizer = word_tokenizer(size.vocab_size, lengths.context)
    model = create_model(size.architecture(lengths.context), tokenizer, SEED)
    end_at_random(model, int(tokenizer.eos_token_id), 1 / lengths.completion[1])
    save_model(model, tokenizer, folder / "policy")
    RewardModel.create(folder / "policy", seed=SEED).save(folder / "reward")
    return Material(folder / "policy", folder / "reward", conversations(size.vocab_size, lengths, rows))


def word_tokenizer(vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """A token a word, `w0`, `w1` and so on, beside the role tokens of prefloop's own tokenizers."""
    words = [f"w{n}" for n in range(vocab_size - len(ROLE_TOKENS))]
    vocabulary = {token: n for n, token in enumerate((*ROLE_TOKENS, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return with_roles(tokenizer, context, unk_token="w0")


def conversations(vocab_size: int, lengths: Lengths, rows: int) -> list[dict[str, Any]]:
    """Preference rows of one turn: random words, Zipf-like as a language's are."""
    draw = generator((SEED, "timing", vocab_size, lengths.name))
    count = vocab_size - len(ROLE_TOKENS)
    chances = 1.0 / np.arange(1, count + 1)
    chances /= chances.sum()

    def words(bounds: tuple[int, int, int]) -> str:
        low, median, high = bounds
        length = int(np.clip(round(median * float(np.exp(0.5 * draw.normal()))), low, high))
        return " ".join(f"w{n}" for n in draw.choice(count, length, p=chances))

    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(found) < rows:
        prompt, chosen, rejected = words(lengths.prompt), words(lengths.completion), words(lengths.completion)
        if prompt in seen or chosen == rejected:
            continue
        seen.add(prompt)
        found.append(
            {
                "prompt": [{"role": "user", "content": prompt}],
                "chosen": [{"role": "assistant", "content": chosen}],
                "rejected": [{"role": "assistant", "content": rejected}],
                "margin": 0.0,
            }
        )
    return found


@torch.no_grad()
def end_at_random(model: PreTrainedModel, end: int, chance: float) -> None:
    """Changes a random model so that each token ends the text with about `chance`: lengths are geometric.

    One dimension of the residual stream is made the same for every token, no block reads or writes it, and
    the end token's row of the head reads it. Input and output embeddings may be tied.
    """
    model.eval()
    for name, weight in model.named_parameters():
        if name.endswith(WRITING):
            weight[0] = 0.0
        elif name.endswith(READING):
            weight[:, 0] = 0.0
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding[:, 0] = 0.1 * embedding.shape[1] ** 0.5
    seen = torch.from_numpy(generator((SEED, "end")).integers(0, len(embedding), (8, 32)))
    hidden = hidden_states(model, seen, torch.ones_like(seen, dtype=torch.bool)).flatten(0, 1)
    logits = hidden @ head.T
    others = torch.cat([logits[:, :end], logits[:, end + 1 :]], dim=1).logsumexp(dim=-1)
    low, high = -50.0, 50.0
    for _ in range(60):
        raised = (low + high) / 2
        mean = torch.sigmoid(logits[:, end] + raised * hidden[:, 0] - others).mean()
        low, high = (raised, high) if mean < chance else (low, raised)
    head[end, 0] += raised
