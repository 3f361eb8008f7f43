"""Masks of adapters' dropout: a function of the row, the place in it, the layer and the step alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from prefloop.config.training import LoraConfig, TrainingConfig
from prefloop.data.batching import pack, pad
from prefloop.data.templates import Encoded
from prefloop.errors import ConfigError, TrainingError
from prefloop.models.adapter_dropout import (
    KeyedDropout,
    Masks,
    Pass,
    begin_step,
    mixed,
    token_keys,
)
from prefloop.models.adapters import attach
from prefloop.models.forward import hidden_states
from prefloop.models.loading import turn_dropout_off
from prefloop.training.optimisation import save_memory
from tests import tiny

ROWS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=6), min_size=1, max_size=4)
GOLDEN = 0x9E3779B97F4A7C15


def dropout(p: float, tokens: Tensor, name: str = "layer", step: int = 0) -> KeyedDropout:
    masks = Masks()
    masks.current = Pass(step, tokens)
    return KeyedDropout(p, name, masks).train()


def some_keys(rows: int, length: int) -> Tensor:
    ids = torch.arange(rows * length).view(rows, length) % 97
    return token_keys(ids, torch.ones_like(ids), None)


def adapted(kind: str = "llama", p: float = 0.5, **options: Any) -> Any:
    """A model whose adapters matter: what they add is not 0, as it is at first."""
    tokens = tiny.tokenizer()
    model = attach(tiny.model(tokens, kind=kind, layers=2), LoraConfig(rank=2, dropout=p, **options), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.arange(parameter.numel()).view_as(parameter).sin())
    begin_step(model, (0, "test", 0))
    return model.train()


def test_bits_are_those_of_the_published_generator() -> None:
    # The first outputs of SplitMix64 from the seed 1234567 (Vigna's splitmix64.c).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = torch.tensor(
        [(1234567 + n * GOLDEN + 2**63) % 2**64 - 2**63 for n in range(1, 5)], dtype=torch.int64
    )
    assert [value % 2**64 for value in mixed(states).tolist()] == expected


@given(ROWS, st.integers(0, 3), st.integers(0, 3))
def test_keys_are_the_same_padded_on_either_side_and_packed(
    rows: list[list[int]], left: int, right: int
) -> None:
    batch = pad(rows, [[True] * len(ids) for ids in rows], 0)
    padded = token_keys(batch.input_ids, batch.attention_mask, None)
    alone = [token_keys(torch.tensor([ids]), torch.ones(1, len(ids)), None)[0] for ids in rows]
    tokens = tiny.tokenizer()
    packed = pack([[Encoded(ids, [], [True] * len(ids)) for ids in rows], [Encoded([9], [], [True])]], tokens)
    together = token_keys(packed.input_ids, None, packed.position_ids)[0]
    start = 0
    for ids, row, own in zip(rows, padded, alone, strict=True):
        assert torch.equal(row[: len(ids)], own)
        assert torch.equal(together[start : start + len(ids)], own)
        start += len(ids)
        aside = torch.tensor([[7] * left + ids + [7] * right])
        mask = torch.tensor([[0] * left + [1] * len(ids) + [0] * right])
        assert torch.equal(token_keys(aside, mask, None)[0, left : left + len(ids)], own)


def test_keys_differ_between_rows_and_places() -> None:
    ids = torch.tensor([[1, 2, 3], [1, 2, 4], [2, 1, 3], [1, 2, 3]])
    keys = token_keys(ids, torch.ones_like(ids), None)
    assert len(keys[:3].unique()) == 9, "a token's key follows from its whole row"
    assert torch.equal(keys[0], keys[3]), "equal rows have equal keys"
    every = torch.tensor(list(itertools.product(range(6), repeat=4)))
    assert len(token_keys(every, None, None).unique()) == every.numel()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_that_is_kept_and_its_scale(p: float) -> None:
    keys = some_keys(8, 32)
    layer = dropout(p, keys)
    inputs = torch.ones(8, 32, 101)
    found = layer(inputs)
    kept = found != 0
    count = kept.numel()
    limit = 5 * (p * (1 - p) / count) ** 0.5
    assert abs(float(kept.float().mean()) - (1 - p)) < limit
    torch.testing.assert_close(found[kept], torch.full_like(found[kept], 1 / (1 - p)), rtol=1e-3, atol=0)
    # The scale is that of the rounded probability, so that the mean is kept exactly.
    assert layer.dropped / 2**16 == pytest.approx(p, abs=2**-17)
    assert float(found.max()) == pytest.approx(1 / (1 - layer.dropped / 2**16), rel=1e-6)
    # Neither a row nor a feature is dropped more often than chance lets it.
    for dims, of in (((0, 1), 8 * 32), ((2,), 101), ((0, 2), 8 * 101)):
        shares = kept.float().mean(dim=dims).flatten()
        spread = (p * (1 - p) / of) ** 0.5
        assert float((shares - (1 - p)).abs().max()) < 5 * spread
        chi = float((((shares - (1 - p)) / spread) ** 2).sum())
        assert abs(chi - len(shares)) < 6 * (2 * len(shares)) ** 0.5


def test_masks_of_layers_steps_rows_and_places_are_independent() -> None:
    keys, inputs, p = some_keys(8, 32), torch.ones(8, 32, 96), 0.3
    first = dropout(p, keys).kept(inputs)
    others = {
        "layer": dropout(p, keys, name="another").kept(inputs),
        "step": dropout(p, keys, step=1).kept(inputs),
        "row": first.roll(1, dims=0),
        "place": first.roll(1, dims=1),
        "feature": first.roll(1, dims=2),
        "draw": first.roll(4, dims=2),
    }
    count = first.numel()
    for name, other in others.items():
        both = float((first & other).float().mean())
        limit = 5 * ((1 - p) ** 2 * (1 - (1 - p) ** 2) / count) ** 0.5
        assert abs(both - (1 - p) ** 2) < limit, name
    assert torch.equal(first, dropout(p, keys).kept(inputs))


def test_gradients_pass_through_what_is_kept() -> None:
    layer = dropout(0.4, some_keys(2, 3))
    inputs = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (inputs,))
    layer(inputs).sum().backward()
    assert inputs.grad is not None
    assert torch.equal(inputs.grad != 0, layer.kept(inputs))


def test_the_ends_of_the_range_and_evaluation() -> None:
    keys, inputs = some_keys(2, 3), torch.randn(2, 3, 7)
    assert torch.equal(dropout(0.0, keys)(inputs), inputs)
    assert torch.equal(dropout(1.0, keys)(inputs), torch.zeros_like(inputs))
    assert torch.equal(dropout(0.5, keys).eval()(inputs), inputs)
    assert dropout(0.5, keys)(inputs.bfloat16()).dtype == torch.bfloat16


def test_rows_end_to_end_and_first_tokens_have_the_masks_of_their_tokens() -> None:
    keys = some_keys(3, 4)
    layer = dropout(0.5, keys)
    whole = layer.kept(torch.ones(3, 4, 9))
    assert torch.equal(layer.kept(torch.ones(12, 9)), whole.view(12, 9))
    assert torch.equal(layer.kept(torch.ones(3, 9)), whole[:, 0])
    with pytest.raises(TrainingError, match="not given one vector a token"):
        layer(torch.ones(5, 9))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_a_row_computes_the_same_in_any_batch(kind: str) -> None:
    model = adapted(kind)
    rows = [[5, 6, 7, 8, 9], [4, 3], [8, 8, 8]]
    batch = pad(rows, [[True] * len(ids) for ids in rows], 0)
    together = hidden_states(model, batch.input_ids, batch.attention_mask)
    for i, ids in enumerate(rows):
        alone = hidden_states(model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool))
        torch.testing.assert_close(together[i, : len(ids)], alone[0], atol=1e-5, rtol=1e-5)
    other = batch.input_ids.flip(0), batch.attention_mask.flip(0)
    torch.testing.assert_close(
        hidden_states(model, *other).flip(0)[0, :5], together[0, :5], atol=1e-5, rtol=1e-5
    )
    begin_step(model, (0, "test", 1))
    assert not torch.allclose(
        hidden_states(model, batch.input_ids, batch.attention_mask), together, atol=1e-2
    )
    model.eval()
    plain = hidden_states(model, batch.input_ids, batch.attention_mask)
    assert not torch.allclose(plain, together, atol=1e-2)


def test_an_encoder_with_a_pooler_is_a_function_of_its_row() -> None:
    config = AutoConfig.for_model(
        "bert",
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        num_labels=1,
    )
    model = turn_dropout_off(AutoModelForSequenceClassification.from_config(config))
    model = attach(
        model, LoraConfig(rank=2, dropout=0.5, targets="query,pooler.dense"), seed=0, task="SEQ_CLS"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1.0)
    begin_step(model, (0, "test", 0))
    model.train()
    rows = [[5, 6, 7, 8], [4, 3]]
    batch = pad(rows, [[True] * len(ids) for ids in rows], 0)
    together = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long()).logits
    alone = model(input_ids=torch.tensor([rows[1]]), attention_mask=torch.ones(1, 2, dtype=torch.long)).logits
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_recomputed_blocks_draw_what_they_drew_whatever_passes_came_after() -> None:
    rows = [torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[4, 3, 2]])]
    gradients = []
    for recompute in (False, True):
        model = adapted()
        save_memory(model, TrainingConfig(gradient_checkpointing=recompute))
        blocks = [layer for layer in model.modules() if getattr(layer, "gradient_checkpointing", False)]
        assert bool(blocks) == recompute
        losses = [hidden_states(model, ids, torch.ones_like(ids)).square().sum() for ids in rows]
        begin_step(model, (0, "test", 1))
        torch.stack(losses).sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept is not None
        torch.testing.assert_close(recomputed, kept, atol=1e-6, rtol=1e-5)


def test_what_cannot_be_keyed_is_refused() -> None:
    model = adapted()
    ids = torch.tensor([[5, 6, 7]])
    tree = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(TrainingError, match="in another layout"):
        model(input_ids=ids, attention_mask=tree)
    with pytest.raises(TrainingError, match="in another layout"):
        model(inputs_embeds=torch.zeros(1, 3, 16))
    fresh = attach(tiny.model(tiny.tokenizer()), LoraConfig(rank=2, dropout=0.5), seed=0).train()
    with pytest.raises(TrainingError, match="no step was begun"):
        fresh(input_ids=ids)
    with pytest.raises(ConfigError, match="names the output layer"):
        adapted(targets="lm_head")
    assert adapted(p=0.0, targets="lm_head")


def test_no_dropout_of_torch_is_left() -> None:
    model = adapted()
    assert sum(isinstance(module, KeyedDropout) for module in model.modules()) == 2 * 7
    assert len({m.name for m in model.modules() if isinstance(m, KeyedDropout)}) == 2 * 7
    state = torch.get_rng_state()
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(module, nn.Dropout) and module.p for module in model.modules())
