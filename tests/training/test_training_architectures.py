"""Families of models, with tokenizers of their kinds, go through every training: SFT, reward, PPO, DPO."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from prefloop.config.dpo import DPOConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.reward import RewardConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.config.sft import SFTConfig
from prefloop.data.batching import pad
from prefloop.errors import ConfigError
from prefloop.models.adapters import reference_of
from prefloop.models.critic import make_critic
from prefloop.models.forward import require_isolation, token_logprobs
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.rewards.sources import LearnedReward, RewardSum
from prefloop.rollout.sampling import Sampler
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.dpo import fit_dpo
from prefloop.training.language_model import encode_demonstrations, finetune
from prefloop.training.noise import Key
from prefloop.training.pairs import encode_comparisons
from prefloop.training.ppo import PPOTrainer
from prefloop.training.reference import reference_logprobs
from prefloop.training.reward import encode_rankings, fit_reward_model
from prefloop.training.reward_normalisation import normalise
from tests import families, tiny
from tests.tiny import StopAfter
from tests.training.trainings import DEMONSTRATIONS, PROMPTS, RANKINGS

LENGTH, ROOM, TEMPERATURE = 100, 12, 0.7
STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4, "max_length": LENGTH, "learning_rate": 1e-3}
WINDOW = {"sliding_window": 6}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
KEY: Key = (0, "trial")


@dataclass(frozen=True)
class Family:
    """A model type, what sets its shape apart, and the kind of tokenizer that it comes with."""

    model_type: str
    tokenizer: Callable[[], PreTrainedTokenizerFast]
    shape: dict[str, Any] = field(default_factory=dict)
    encoder_reward: bool = False
    packs: bool = True


def _headers() -> PreTrainedTokenizerFast:
    return families.byte_level(
        families.HEADERS,
        eos="<|end_of_text|>",
        bos="<|begin_of_text|>",
        extra=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        adds_bos=True,
    )


FAMILIES = {
    "llama": Family("llama", _headers, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "qwen2": Family("qwen2", lambda: families.byte_level(families.CHATML_WITH_SYSTEM)),
    "qwen3": Family("qwen3", lambda: families.byte_level(families.REASONING)),
    "gemma3": Family("gemma3_text", families.unigram, {**MIXED, "rope_parameters": None}),
    "gemma2": Family(
        "gemma2",
        families.sentencepiece_bpe,
        {**MIXED, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 5.0},
    ),
    "gpt2": Family(
        "gpt2",
        # No pad token and no template of its own: both are given to it when it is loaded.
        lambda: families.byte_level(None, bos="<|endoftext|>", extra=()),
        {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_inner": 32, "n_positions": 128},
    ),
    "mistral": Family("mistral", families.sentencepiece_bpe, {**WINDOW, "num_key_value_heads": 1}),
    "smollm": Family(
        "llama",
        lambda: families.byte_level(families.CHATML, bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>"),
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        encoder_reward=True,
    ),
    # Logits that are scaled after the head, and no classifier of their own in transformers.
    "granite": Family(
        "granite",
        families.byte_level,
        {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
        encoder_reward=True,
    ),
    "cohere": Family("cohere", families.byte_level, {"logit_scale": 0.25}, encoder_reward=True),
    # Positions that are a table with an offset; dropout that is no module.
    "opt": Family("opt", families.byte_level, {"word_embed_proj_dim": 16, "ffn_dim": 32}, packs=False),
    # Positions as a bias on the attention, which transformers cannot restart within a row.
    "bloom": Family("bloom", families.byte_level, {"n_layer": 2, "n_head": 4}, packs=False),
}


def save_random(family: Family, folder: Path) -> None:
    """A random model as a hub would hold it: dropout on, no pad token where the family has none."""
    tokens = family.tokenizer()
    shape = {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "max_position_embeddings": 128,
        "pad_token_id": tokens.pad_token_id,
        "bos_token_id": tokens.bos_token_id,
        "eos_token_id": tokens.eos_token_id,
        "attention_dropout": 0.1,
        **family.shape,
    }
    if family.model_type == "gpt2":
        kept = ("vocab_size", "bos_token_id", "eos_token_id")
        shape = {**{name: shape[name] for name in kept}, **family.shape}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter *= 4  # far from uniform, so that a wrong position or mask shows
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)


def save_encoder(folder: Path) -> None:
    """A BERT with word pieces, which has no end token and no chat template."""
    tokens = families.wordpiece()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokens), max_position_embeddings=64, **shape)).save_pretrained(
        folder
    )
    tokens.save_pretrained(folder)


def assert_sampling_is_what_training_sees(model: PreTrainedModel, tokens: PreTrainedTokenizerBase) -> None:
    prompts = [*tiny.QUESTIONS[:3], "Is the kettle that stands beside the lamp blue, or is it red?", "a"]
    config = SamplingConfig(max_new_tokens=ROOM, temperature=TEMPERATURE)
    rollouts = Sampler(model, tokens, config).sample(prompts, KEY)
    batch = pad(
        [p + c for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)],
        [
            [False] * len(p) + [True] * len(c)
            for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)
        ],
        int(tokens.pad_token_id),
    )
    model.train()  # as it is in training: a dropout that is on would show
    with torch.no_grad():
        logprobs, _ = token_logprobs(
            model, batch.input_ids, batch.attention_mask, batch.wanted, temperature=TEMPERATURE
        )
    model.eval()
    for row, wanted, own in zip(logprobs, batch.wanted, rollouts.logprobs, strict=True):
        torch.testing.assert_close(row[wanted], torch.tensor(own), atol=1e-4, rtol=0)
    assert len({round(value, 3) for value in itertools.chain(*rollouts.logprobs)}) > ROOM
    assert max(len(p) for p in rollouts.prompt_ids) > 2 * WINDOW["sliding_window"]


def assert_loads_plainly(folder: Path, model: PreTrainedModel, tokens: PreTrainedTokenizerBase) -> None:
    """transformers alone gives equal logits and an equal template, and knows where an answer ends."""
    plain = AutoModelForCausalLM.from_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert again.chat_template == tokens.chat_template
    assert again.pad_token_id == plain.config.pad_token_id != again.eos_token_id
    talk = [{"role": "user", "content": "And the lamp?"}]
    inputs = again.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**inputs).logits, model(**inputs).logits, atol=1e-6, rtol=0, check_dtype=True
        )
    assert again.convert_tokens_to_ids(END[tokens.chat_template]) in plain.generation_config.eos_token_id


END = {
    families.HEADERS: "<|eot_id|>",
    families.CHATML: "<|im_end|>",
    families.CHATML_WITH_SYSTEM: "<|im_end|>",
    families.REASONING: "<|im_end|>",
    families.TURNS: "<end_of_turn>",
    families.INST: "</s>",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_goes_through_every_training(name: str, tmp_path: Path) -> None:
    family, recorder = FAMILIES[name], StopAfter()
    common: dict[str, Any] = {"seed": 0, "precision": "fp32", "recorder": recorder}
    save_random(family, tmp_path / "base")
    model, tokens = load_policy(tmp_path / "base")
    END.setdefault(str(tokens.chat_template), str(tokens.eos_token))
    assert_sampling_is_what_training_sees(model, tokens)

    rows, cut = encode_demonstrations(DEMONSTRATIONS, tokens, LENGTH)
    assert cut == 0
    config = SFTConfig(packing=family.packs, neftune_alpha=1.0, **STEPS)
    finetune(model, tokens, rows, config, checkpoints=Checkpoints(tmp_path / "1", 1e9), **common)
    if not family.packs:
        with pytest.raises(ConfigError, match="documents of one row see each other"):
            require_isolation(model, padded=True)
    save_model(model, tokens, tmp_path / "sft")
    assert_loads_plainly(tmp_path / "sft", model, tokens)

    trunk = tmp_path / "sft"
    if family.encoder_reward:
        trunk = tmp_path / "encoder"
        save_encoder(trunk)
    reward_model = RewardModel.create(trunk, seed=0)
    assert reward_model.encoder_only == family.encoder_reward
    encoded = encode_rankings(reward_model, RANKINGS, LENGTH)
    fit_reward_model(
        reward_model,
        encoded,
        RewardConfig(**STEPS),
        seed=0,
        checkpoints=Checkpoints(tmp_path / "2", 1e9),
        recorder=recorder,
    )
    questions, answers = tiny.QUESTIONS, [*tiny.ANSWERS, "Red.", "A lamp."]
    normalise(reward_model.eval(), questions, answers, RewardConfig())
    scores = reward_model.score(questions, answers)
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, rel=1e-4)
    reward_model.save(tmp_path / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    reader = AutoTokenizer.from_pretrained(tmp_path / "reward")
    ids = torch.tensor([reward_model.encode(questions[0], answers[0])])
    with torch.no_grad():
        (raw,) = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
    assert raw.item() == pytest.approx(
        scores[0].item() * reward_model.normalisation.std + reward_model.normalisation.mean, abs=1e-6
    )
    assert reader.chat_template == reward_model.tokenizer.chat_template

    policy, _ = load_policy(tmp_path / "sft")
    reference = reference_of(policy)
    ppo = PPOConfig(sampling=SamplingConfig(max_new_tokens=8), select_every=2, **STEPS)
    critic = make_critic(ppo, policy, reward_model, tokens)
    rewards = RewardSum({"reward_model": (1.0, LearnedReward(reward_model))})
    trainer = PPOTrainer(policy, reference, critic, tokens, rewards, PROMPTS, ppo, seed=0)
    trainer.train(Checkpoints(tmp_path / "3", 1e9), recorder)
    save_model(policy, tokens, tmp_path / "ppo")
    assert_loads_plainly(tmp_path / "ppo", policy, tokens)
    assert_sampling_is_what_training_sees(policy, tokens)

    other, _ = load_policy(tmp_path / "sft")
    dpo = DPOConfig(**STEPS)
    comparisons, _ = encode_comparisons(RANKINGS, tokens, dpo)
    against = reference_logprobs(other, tokens, comparisons, "fp32")
    checkpoints = Checkpoints(tmp_path / "4", 1e9)
    fit_dpo(other, tokens, comparisons, against, dpo, checkpoints=checkpoints, **common)
    save_model(other, tokens, tmp_path / "dpo")
    assert_loads_plainly(tmp_path / "dpo", other, tokens)

    # The first DPO step starts at the reference: every pair has a margin of 0.
    assert recorder.rows[-2]["loss"] == pytest.approx(math.log(2), rel=1e-4)
    assert all(math.isfinite(value) for row in recorder.rows for value in row.values())
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "sft").get_input_embeddings().weight
    for end in (policy, other):
        assert not torch.equal(start, end.get_input_embeddings().weight)
    if family.shape.get("tie_word_embeddings") or family.model_type == "gpt2":
        head = AutoModelForCausalLM.from_pretrained(tmp_path / "ppo").get_output_embeddings().weight
        assert torch.equal(head, policy.get_input_embeddings().weight)
