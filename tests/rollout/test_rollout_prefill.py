"""Prompts that are read some at a time, against all of them read at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from prefloop.models.forward import precision_context
from prefloop.rollout import prefill as module
from prefloop.rollout.kv_cache import RoomyLayer, roomy_cache, roomy_layers
from prefloop.rollout.prefill import groups_within, prefill
from tests import tiny

PAD = 3
PROMPTS = [[5, 7, 9], [6], [8, 4, 10, 11, 12, 13, 14], [9, 9], [7, 4, 6, 5]]
SOURCE = torch.tensor([2, 0, 1, 4, 3, 0, 2])


def read_at_once(model, rows):
    """Logits and the cache of one pass over rows that are padded on the left."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    cache = DynamicCache(config=model.config)
    places = (real.cumsum(dim=-1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=real, position_ids=places, past_key_values=cache, use_cache=True
    ).logits[:, -1]
    return logits, real, cache


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("tokens", [1, 8, 2**13])
@torch.no_grad()
def test_logits_and_cache_are_those_of_one_pass(kind, tokens, monkeypatch):
    monkeypatch.setattr(module, "TOKENS", tokens)
    model = tiny.model(tiny.tokenizer(), kind=kind, layers=2)
    rows = [PROMPTS[i] for i in SOURCE]
    logits, real, cache = prefill(model, PROMPTS, SOURCE, PAD, 4)
    expected, mask, theirs = read_at_once(model, rows)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    assert torch.equal(real, mask)
    assert cache.get_seq_length() == theirs.get_seq_length() == 7
    seen = real.bool()
    for ours, other in zip(cache.layers, theirs.layers, strict=True):
        for mine, its in ((ours.keys, other.keys), (ours.values, other.values)):
            close = (mine - its).abs().amax(dim=(1, 3)) < 1e-6
            assert close[seen].all()
        if type(ours) is RoomyLayer and tokens == 1:
            assert not ours.keys[2, :, :6].any(), "where a row has no tokens its keys are 0, never unset"


@torch.no_grad()
def test_the_cache_goes_on_as_one_pass_over_everything(monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 8)
    model = tiny.model(tiny.tokenizer(), layers=2)
    _, real, cache = prefill(model, PROMPTS, SOURCE, PAD, 4)
    then = torch.tensor([[17], [18], [19], [20], [21], [22], [23]])
    logits = model(
        input_ids=then,
        attention_mask=torch.cat([real, torch.ones_like(then)], dim=1),
        position_ids=real.sum(dim=-1, keepdim=True),
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    rows = [[*PROMPTS[i], int(token)] for i, token in zip(SOURCE, then, strict=True)]
    torch.testing.assert_close(logits, read_at_once(model, rows)[0], rtol=0, atol=1e-6)


@torch.no_grad()
def test_in_bf16_keeping_what_attention_casts_to_changes_no_bit(monkeypatch):
    """Attention casts keys to bf16 under autocast; norms and rotary positions leave them in float32."""

    def as_written(model, step):
        cache = roomy_cache(model, step)
        for layer in roomy_layers(cache):
            layer.kept = None
        return cache

    model = tiny.model(tiny.tokenizer(), kind="qwen3", layers=2)
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        if dtype == torch.float32:
            monkeypatch.setattr(module, "roomy_cache", as_written)
        with precision_context("bf16", "cpu"):
            first, real, cache = prefill(model, PROMPTS, SOURCE, PAD, 4)
            then = model(
                input_ids=torch.full((7, 1), 20),
                attention_mask=torch.cat([real, torch.ones(7, 1, dtype=torch.long)], dim=1),
                position_ids=real.sum(dim=-1, keepdim=True),
                past_key_values=cache,
                use_cache=True,
            ).logits
        assert {layer.keys.dtype for layer in cache.layers} == {dtype}
        found.append((first, then))
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_in_float32_layers_keep_float32():
    with torch.no_grad():
        _, _, cache = prefill(tiny.model(tiny.tokenizer()), PROMPTS, SOURCE, PAD, 4)
    assert {layer.keys.dtype for layer in roomy_layers(cache)} == {torch.float32}


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=60))
def test_every_prompt_is_read_once_and_few_together(lengths):
    prompts = [[1] * length for length in lengths]
    passes = list(groups_within(prompts, 2048))
    assert sorted(i for places in passes for i in places) == list(range(len(lengths)))
    for places in passes:
        assert len(places) * max(lengths[i] for i in places) <= 2048 or len(places) == 1
    ends = [max(lengths[i] for i in places) for places in passes]
    starts = [min(lengths[i] for i in places) for places in passes]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
