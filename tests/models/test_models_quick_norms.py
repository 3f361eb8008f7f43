import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from prefloop.models.forward import token_logprobs
from prefloop.models.loading import load_policy, prepared
from prefloop.models.quick_norms import quicken_norms, rms_norm
from prefloop.models.reward_model import RewardModel
from tests import tiny

KINDS = {"llama": 5, "qwen3": 9, "mistral": 5, "gemma2": 0, "gpt2": 0}


def definition(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + eps)


def test_by_hand() -> None:
    # mean of squares 12.5, so 3 / sqrt(12.5) and 4 / sqrt(12.5), times the weights
    found = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
    assert found[0].tolist() == pytest.approx([0.8485281, 2.2627417])


@pytest.mark.parametrize("shape", [(5, 6), (2, 3, 4), (1, 7, 2, 8), (0, 4)])
def test_value_and_gradient_are_those_of_the_definition(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[-1], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), definition(x, weight, 1e-6), rtol=1e-12, atol=1e-12)
    if x.numel():
        assert torch.autograd.gradcheck(lambda a, b: rms_norm(a, b, 1e-3), (x, weight))
    towards = torch.randn(shape, dtype=torch.float64)
    own = torch.autograd.grad(rms_norm(x, weight, 1e-6), (x, weight), towards)
    direct = torch.autograd.grad(definition(x, weight, 1e-6), (x, weight), towards)
    for one, other in zip(own, direct, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    assert x.grad is not None
    assert x.grad[0].tolist() == pytest.approx([1000.0] * 4)  # 1 / sqrt(eps)


def model_of(kind: str) -> Any:
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    more = {} if kind == "gpt2" else {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **more))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.add_(0.3 * torch.randn_like(value))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_computes_and_learns_the_same(kind: str) -> None:
    plain = model_of(kind).eval()
    quick = copy.deepcopy(plain)
    assert quicken_norms(quick) == KINDS[kind]
    ids = torch.tensor([[1, 5, 7, 9, 2], [4, 4, 3, 0, 0]])
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    gradients = []
    for model in (plain, quick):
        logprobs, _ = token_logprobs(model, ids, real, real)
        logprobs.sum().backward()
        gradients.append([logprobs.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_copy_has_norms_of_its_own() -> None:
    model = prepared(model_of("llama"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.norm.weight.mul_(2.0)
    x = torch.randn(3, 16)
    torch.testing.assert_close(other.model.norm(x), 2.0 * model.model.norm(x))


def test_bf16_under_autocast_is_computed_in_float32_without_rounding_between() -> None:
    model = prepared(model_of("llama"))
    norm, x = model.model.norm, torch.randn(300, 16).bfloat16().requires_grad_()
    exact = definition(x.detach().double(), norm.weight.double(), norm.variance_epsilon)
    with torch.autocast("cpu", torch.bfloat16):
        found, own = norm(x), type(norm).forward(norm, x)
    assert found.dtype == own.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    assert (own - exact).abs().max() > 1e-3  # what is spared
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_norms_before_linear_layers_are_rounded_once_and_layers_see_the_same(kind: str) -> None:
    model = prepared(model_of(kind))
    block, x = model.model.layers[0], torch.randn(1, 5, 16, requires_grad=True)
    full = [block.input_layernorm(x), block.post_attention_layernorm(x)]
    with torch.autocast("cpu", torch.bfloat16):
        found = [block.input_layernorm(x), block.post_attention_layernorm(x)]
        assert [one.dtype for one in found] == [torch.bfloat16] * 2
        assert all(torch.equal(one, other.bfloat16()) for one, other in zip(found, full, strict=True))
        layer = block.self_attn.q_proj
        assert torch.equal(layer(found[0]), layer(full[0]))
        assert model.model.norm(x).dtype == torch.float32, "the head may compute in float32"
        if kind == "qwen3":
            assert block.self_attn.q_norm(torch.randn(2, 8)).dtype == torch.float32
    assert all(one.dtype == torch.float32 for one in full)
    (gradient,) = torch.autograd.grad(found[0].float().sum(), x)
    (expected,) = torch.autograd.grad(full[0].sum(), x)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


def test_norms_that_are_added_or_routed_stay_in_float32() -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
    more = {"intermediate_size": 24, "num_key_value_heads": 2}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    for kind, own in (("olmo2", {}), ("mixtral", experts)):
        model = prepared(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **more, **own)))
        norm = model.model.layers[0].post_attention_layernorm
        assert "forward" in vars(norm)
        with torch.autocast("cpu", torch.bfloat16):
            assert norm(torch.randn(3, 16)).dtype == torch.float32


def test_a_norm_of_lower_precision_keeps_its_own() -> None:
    norm, x = prepared(model_of("llama")).bfloat16().model.norm, torch.randn(3, 16).bfloat16()
    assert torch.equal(norm(x), type(norm).forward(norm, x))


def test_models_that_are_made_and_loaded_have_them(tmp_path: Path) -> None:
    tiny.saved(tmp_path / "model")
    made, (loaded, _) = tiny.model(tiny.tokenizer()), load_policy(tmp_path / "model")
    scorer = RewardModel.create(tmp_path / "model", seed=0).model
    for model in (made, loaded, scorer):
        assert "forward" in vars(model.get_submodule("model.norm"))
