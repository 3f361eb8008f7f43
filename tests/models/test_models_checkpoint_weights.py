"""The weights that are pushed to an engine are those that saving the model would write."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import MixtralConfig, MixtralForCausalLM

from prefloop.config.training import LoraConfig
from prefloop.models.adapters import attach, merge
from prefloop.models.checkpoint_weights import checkpoint_weights
from prefloop.models.saving import save_model
from tests import tiny


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "mistral", "gemma3_text"])
@pytest.mark.parametrize("rank", [0, 2])
def test_they_are_those_of_the_saved_model(kind: str, rank: int, tmp_path: Path) -> None:
    tokens = tiny.tokenizer()
    model = attach(tiny.model(tokens, kind=kind), LoraConfig(rank=rank, alpha=4.0), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # starts at 0, where an adapter changes nothing
                parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = checkpoint_weights(model)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    save_model(merge(copy.deepcopy(model)), tokens, tmp_path / "saved")
    expected = load_file(tmp_path / "saved" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_fused_experts_go_by_the_names_of_their_checkpoints() -> None:
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = MixtralConfig(vocab_size=16, num_hidden_layers=1, num_local_experts=3, **shape)
    model = MixtralForCausalLM(config)
    found = checkpoint_weights(model)
    names = [f"model.layers.0.block_sparse_moe.experts.{e}.w{w}.weight" for e in range(3) for w in (1, 2, 3)]
    assert set(names) <= found.keys()
    assert not [name for name in found if "gate_up_proj" in name]
    fused = dict(model.named_parameters())["model.layers.0.mlp.experts.down_proj"]
    assert torch.equal(found[names[1]], fused[0])
