"""Hidden matrices are told from embeddings, heads, routers, vectors and adapters in models of many kinds."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from prefloop.config.training import LoraConfig
from prefloop.models.adapters import attach
from prefloop.models.critic import Critic
from prefloop.models.hidden_matrices import hidden_matrices

SHAPE: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "pad_token_id": 0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
QWEN2_MOE = {**EXPERTS, "shared_expert_intermediate_size": 8, "decoder_sparse_step": 1}
AFMOE = {**EXPERTS, "num_shared_experts": 1, "num_dense_layers": 0}
ATTENTION = {f"self_attn.{name}_proj.weight" for name in "qkvo"}
FEED_FORWARD = {"gate_proj.weight", "up_proj.weight", "down_proj.weight"}
MLP = {f"mlp.{name}" for name in FEED_FORWARD}
STACKS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
OF_A_BLOCK: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama": ({}, ATTENTION | MLP),
    "qwen3": ({"tie_word_embeddings": True}, ATTENTION | MLP),
    "qwen2_moe": (QWEN2_MOE, ATTENTION | STACKS | {f"mlp.shared_expert.{name}" for name in FEED_FORWARD}),
    "mixtral": ({"num_local_experts": 4}, ATTENTION | STACKS),
    # Its experts have biases, (K, C), in one parameter.
    "gpt_oss": ({"num_local_experts": 4}, ATTENTION | STACKS),
    # Its router is a linear layer.
    "afmoe": (
        AFMOE,
        ATTENTION
        | {"self_attn.gate_proj.weight"}
        | STACKS
        | {f"mlp.shared_experts.{n}" for n in FEED_FORWARD},
    ),
}


def causal(kind: str, **shape: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))


def names(module: nn.Module) -> list[str]:
    found = {id(p) for p in hidden_matrices(module)}
    return [name for name, p in module.named_parameters() if id(p) in found]


@pytest.mark.parametrize("kind", OF_A_BLOCK)
def test_a_causal_model_has_them_in_its_blocks(kind: str) -> None:
    shape, expected = OF_A_BLOCK[kind]
    found = names(causal(kind, **SHAPE, **shape))
    assert {name.removeprefix("model.layers.0.") for name in found} == expected


def test_gpt2_keeps_them_transposed_and_positions_are_a_table() -> None:
    found = names(causal("gpt2", **GPT2))
    expected = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    assert found == [f"transformer.h.0.{name}.weight" for name in expected]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_scores_are_no_hidden_features(kind: str) -> None:
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **SHAPE, num_labels=3))
    found = names(model)
    linear = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    heads = {"score", "classifier"}
    assert found == [f"{name}.weight" for name in linear if name not in heads]
    assert len(linear) - len(found) == 1
    critic = Critic(model, 16)
    assert names(critic) == [f"trunk.{name}" for name in found]


def test_an_adapters_matrices_are_left_and_so_is_what_it_adapts() -> None:
    model = causal("llama", **SHAPE)
    critic = Critic(model, 16)
    adapted = attach(model, LoraConfig(rank=2), seed=0)
    assert names(adapted) == []
    assert len(names(nn.ModuleList([adapted, critic]))) == 7
    scored = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("llama", **SHAPE))
    assert names(attach(scored, LoraConfig(rank=2), seed=0, task="SEQ_CLS")) == []


def test_what_does_not_train_is_left() -> None:
    model = causal("llama", **SHAPE)
    model.model.layers[0].mlp.requires_grad_(False)
    assert {name.removeprefix("model.layers.0.") for name in names(model)} == ATTENTION


def test_layers_that_are_in_no_model_are_heads() -> None:
    assert hidden_matrices(Critic(None, 16)) == hidden_matrices(nn.Linear(4, 4)) == []


def test_a_model_within_another_keeps_its_own_head() -> None:
    class Outer(PreTrainedModel):
        config_class = AutoConfig.for_model("llama").__class__
        base_model_prefix = "none"
        _supports_sdpa = True

        def __init__(self) -> None:
            inner = causal("llama", **SHAPE)
            super().__init__(inner.config)
            self.inner = inner
            self.bridge = nn.Linear(16, 16)

    expected = {f"inner.model.layers.0.{name}" for name in ATTENTION | MLP} | {"bridge.weight"}
    assert set(names(Outer())) == expected
