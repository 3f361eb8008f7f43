"""Adapters: off, they are the model they were put on; merged, they are a plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from prefloop.config.training import LoraConfig
from prefloop.models.adapters import attach, has_adapter, merge, plain, reference_mode, reference_of
from prefloop.models.forward import token_logprobs
from prefloop.models.reward_model import RewardModel
from tests import tiny

pytest.importorskip("peft")
IDS = torch.tensor([[10, 20, 30, 40]])
WANTED = torch.tensor([[False, True, True, True]])


def logprobs(model: object) -> Tensor:
    with torch.no_grad():
        return token_logprobs(model, IDS, torch.ones_like(WANTED), WANTED)[0]  # type: ignore[arg-type]


def disturb(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1


def test_rank_zero_is_the_model_itself() -> None:
    model = tiny.model(tiny.tokenizer())
    assert attach(model, LoraConfig(), seed=0) is model
    assert merge(model) is model
    assert plain(model) is model
    assert not has_adapter(model)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_off_is_exactly_the_start_and_merged_is_what_was_trained(kind: str, tmp_path: Path) -> None:
    before = logprobs(tiny.model(tiny.tokenizer(), kind=kind))
    adapted = attach(tiny.model(tiny.tokenizer(), kind=kind), LoraConfig(rank=2, alpha=4.0), seed=0)
    assert torch.equal(logprobs(adapted), before)
    disturb(adapted)
    trained = logprobs(adapted)
    assert not torch.allclose(trained, before, atol=1e-3)
    with reference_mode(adapted):
        assert torch.equal(logprobs(adapted), before)
    assert torch.equal(logprobs(adapted), trained)
    assert reference_of(adapted) is adapted
    merged = merge(adapted)
    assert not has_adapter(merged)
    assert type(merged) is type(tiny.model(tiny.tokenizer(), kind=kind))
    torch.testing.assert_close(logprobs(merged), trained, atol=1e-5, rtol=1e-5)


def test_adapters_start_from_their_seed() -> None:
    def start(seed: int) -> list[Tensor]:
        adapted = attach(tiny.model(tiny.tokenizer()), LoraConfig(rank=2), seed=seed)
        return [p.detach() for n, p in adapted.named_parameters() if "lora_A" in n]

    assert all(torch.equal(a, b) for a, b in zip(start(0), start(0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(start(0), start(1), strict=True))


def test_a_reference_is_a_frozen_copy() -> None:
    model = tiny.model(tiny.tokenizer())
    reference = reference_of(model)
    before = logprobs(reference)
    disturb(model)
    assert torch.equal(logprobs(reference), before)
    assert not any(p.requires_grad for p in reference.parameters())


def test_a_reward_model_with_an_adapter_merges_head_and_all(tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0).eval()
    model.model = attach(model.model, LoraConfig(rank=2, alpha=4.0), seed=0, task="SEQ_CLS")
    names = [n for n, p in model.model.named_parameters() if p.requires_grad]
    assert any("score" in name for name in names)
    disturb(model.model)
    expected = model.score(tiny.QUESTIONS, ["Blue."] * 6)
    model.model = merge(model.model)
    model.save(tmp_path / "reward")
    again = RewardModel.load(tmp_path / "reward").score(tiny.QUESTIONS, ["Blue."] * 6)
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)
