"""Packed rows, NEFTune's noise and the two averages: the step of the padded layout, by other means."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from prefloop.config.parse import parse
from prefloop.config.sft import SFTConfig
from prefloop.config.training import LoraConfig
from prefloop.data.batching import best_fit, collate, pack
from prefloop.data.templates import Encoded
from prefloop.errors import ConfigError
from prefloop.models.adapter_dropout import begin_step
from prefloop.models.adapters import attach
from prefloop.models.forward import require_isolation, token_logprobs
from prefloop.models.loading import turn_dropout_off
from prefloop.objectives.sft import neftune_noise, sft_loss
from prefloop.training.language_model import TokenRows, encode_demonstrations, mean_loss, sequence_weights
from prefloop.training.loop import Part
from prefloop.training.neftune import noise_of, noisy_embeddings
from tests import tiny
from tests.training.trainings import DEMONSTRATIONS

# Windows far shorter than the rows, so that a mask that forgot them would show.
WINDOWS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gpt2": {},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma2": {
        "sliding_window": 5,
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 5},
}


def far_from_uniform(kind: str, tokens: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A random model whose outputs depend on every token it may see."""
    config = tiny.model(tokens, kind=kind, layers=2).config
    for name, value in WINDOWS[kind].items():
        setattr(config, name, value)
    torch.manual_seed(0)
    model = turn_dropout_off(AutoModelForCausalLM.from_config(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter *= 4
    return model


def demonstrations(tokens: PreTrainedTokenizerFast, length: int = 48) -> list[Encoded]:
    return encode_demonstrations(DEMONSTRATIONS, tokens, length)[0]


def token_rows(model: PreTrainedModel, tokens: PreTrainedTokenizerFast, **options: Any) -> TokenRows:
    length = options.pop("max_length", 60)
    config = SFTConfig(batch_size=8, max_length=length)
    return TokenRows(model, tokens, demonstrations(tokens), config, (0, "sft"), "fp32", **options)


def step_of(rows: TokenRows, chosen: Sequence[int], size: int = 0) -> tuple[float, dict[str, Tensor], int]:
    """Loss, gradients and forward passes of a step."""
    model = rows.model
    model.zero_grad(set_to_none=True)
    loss, passes = 0.0, 0
    for part in rows.parts(chosen, 3, size):
        part.loss.backward()
        loss, passes = loss + part.loss.item(), passes + 1
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}, passes


def assert_equal_steps(one: TokenRows, other: TokenRows, chosen: Sequence[int], size: int = 0) -> None:
    (loss, gradients, _), (other_loss, others, _) = step_of(one, chosen), step_of(other, chosen, size)
    assert loss == pytest.approx(other_loss, abs=1e-5)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize(("average", "alpha"), [("token", 0.0), ("sequence", 5.0)])
def test_a_packed_step_is_the_padded_one(kind: str, average: str, alpha: float) -> None:
    tokens = tiny.tokenizer()
    model = far_from_uniform(kind, tokens)
    require_isolation(model)
    options: dict[str, Any] = {"average": average, "neftune_alpha": alpha}
    padded, packed = (token_rows(model, tokens, packing=packing, **options) for packing in (False, True))
    chosen = [9, 2, 17, 4, 0, 11, 5]
    laid_out = [row for groups in packed._forwards(chosen, 0) for group in groups for row in group]
    assert len(laid_out) < len(chosen)
    assert sorted(itertools.chain(*laid_out)) == sorted(chosen)
    assert_equal_steps(padded, packed, chosen)
    assert_equal_steps(padded, packed, chosen, size=1)


def test_packing_works_with_an_adapter_and_recomputed_activations() -> None:
    tokens = tiny.tokenizer()
    model = attach(far_from_uniform("llama", tokens), LoraConfig(rank=2), seed=0)
    require_isolation(model)
    padded = token_rows(model, tokens, neftune_alpha=5.0)
    packed = token_rows(model, tokens, packing=True, neftune_alpha=5.0)
    assert_equal_steps(padded, packed, [3, 1, 2, 8])
    plain = model.get_base_model()
    expected = step_of(packed, [3, 1, 2, 8])
    plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    found = step_of(packed, [3, 1, 2, 8])
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5)


def test_a_row_drops_the_same_packed_as_padded() -> None:
    tokens = tiny.tokenizer()
    model = attach(far_from_uniform("llama", tokens), LoraConfig(rank=2, dropout=0.3), seed=0)
    padded, packed = (token_rows(model, tokens, packing=packing) for packing in (False, True))
    model.train()
    begin_step(model, (0, "test", 3))
    chosen = [9, 2, 17, 4, 0, 11, 5]
    assert_equal_steps(padded, packed, chosen)
    assert_equal_steps(padded, packed, chosen, size=1)
    dropped = step_of(packed, chosen)[1]
    model.eval()
    assert max(float((dropped[n] - g).abs().max()) for n, g in step_of(packed, chosen)[1].items()) > 1e-3


def test_tokens_of_one_document_change_nothing_in_another() -> None:
    tokens = tiny.tokenizer()
    model = far_from_uniform("mistral", tokens)
    first, second = demonstrations(tokens)[:2]
    changed = Encoded(
        [5] * len(first.prompt_ids), [6] * len(first.completion_ids), [False, *first.trainable[1:]]
    )
    results = []
    for opening in (first, changed):
        batch = pack([[opening, second]], tokens)
        with torch.no_grad():
            logprobs, _ = token_logprobs(
                model, batch.input_ids, batch.attention_mask, batch.wanted, position_ids=batch.position_ids
            )
        results.append(logprobs[0])
    border = len(first.input_ids)
    assert torch.equal(results[0][border:], results[1][border:])
    assert not torch.equal(results[0][:border], results[1][:border])


def test_a_packed_batch_by_hand() -> None:
    tokens = tiny.tokenizer()
    pad = int(tokens.pad_token_id)
    batch = pack(
        [
            [Encoded([7], [8, 9], [False, True, True]), Encoded([], [5, 6], [True, True])],
            [Encoded([4], [3], [False, True])],
        ],
        tokens,
    )
    assert batch.input_ids.tolist() == [[7, 8, 9, 5, 6], [4, 3, pad, pad, pad]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    # The first token of a document is never wanted: what stands before it is another document.
    assert batch.wanted.tolist() == [[False, True, True, False, True], [False, True, False, False, False]]


def test_recurrent_models_are_not_packed() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4, expand=2
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        ConfigError, match="documents of one row see each other in a model of type mamba"
    ) as caught:
        require_isolation(model)
    assert "sft.packing" in caught.value.remedy
    assert model.training


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60))
def test_best_fit_places_each_document_once(lengths: list[int], capacity: int) -> None:
    rows = best_fit(lengths, capacity)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    fills = [sum(lengths[i] for i in row) for row in rows]
    assert all(fill <= capacity or len(row) == 1 for fill, row in zip(fills, rows, strict=True))
    # No row's first document would have fitted into a row opened before it.
    for n, row in enumerate(rows):
        before = [sum(lengths[i] for i in other if lengths[i] >= lengths[row[0]]) for other in rows[:n]]
        assert all(fill + lengths[row[0]] > capacity for fill in before)


def test_best_fit_by_hand() -> None:
    # 6 and 5 open rows of 10; 4 fits both and goes to the fuller one, 3 to the other, 2 into what 3 left.
    assert best_fit([3, 5, 2, 6, 4], 10) == [[3, 4], [1, 0, 2]]
    assert best_fit([12, 3], 10) == [[0], [1]]
    assert best_fit([], 10) == []


def test_the_two_averages_by_hand() -> None:
    logprobs = torch.tensor([[0.0, -1.0, -3.0], [0.0, -2.0, 0.0]])
    wanted = torch.tensor([[False, True, True], [False, True, False]])
    assert sft_loss(logprobs, wanted, 3).item() == pytest.approx(2.0)  # (1 + 3 + 2) / 3
    weights = torch.tensor([[0.5] * 3, [1.0] * 3])
    assert sft_loss(logprobs, wanted, 2, weights).item() == pytest.approx(2.0)  # ((1 + 3) / 2 + 2) / 2
    logprobs[0, 1] = -5.0
    assert sft_loss(logprobs, wanted, 3).item() == pytest.approx(10 / 3)
    assert sft_loss(logprobs, wanted, 2, weights).item() == pytest.approx(3.0)


@pytest.mark.parametrize("packing", [False, True])
def test_a_mean_over_sequences_is_each_ones_own_mean(packing: bool) -> None:
    tokens = tiny.tokenizer()
    model = far_from_uniform("llama", tokens)
    rows = token_rows(model, tokens, average="sequence", packing=packing)
    chosen = [0, 3, 7, 10, 12]
    own = [mean_loss(model, tokens, [rows.rows[i]], precision="fp32") for i in chosen]
    assert len({sum(rows.rows[i].trainable) for i in chosen}) > 1
    for size in (0, 1, 2):
        assert step_of(rows, chosen, size)[0] == pytest.approx(sum(own) / len(own), abs=1e-5)


def test_weights_of_packed_sequences_by_hand() -> None:
    tokens = tiny.tokenizer()
    members = [[Encoded([7], [8, 9], [False, True, True]), Encoded([4], [3], [False, True])]]
    assert sequence_weights(members, pack(members, tokens)).tolist() == [[0.5, 0.5, 0.5, 1.0, 1.0]]


def test_neftune_by_hand() -> None:
    uniform = torch.tensor([[0.0, 0.5], [0.75, 1.0]])
    # alpha / sqrt(2 x 2) = 3, times 2u - 1.
    assert neftune_noise(uniform, 6.0).tolist() == [[-3.0, 0.0], [1.5, 3.0]]


def test_noise_follows_the_row_wherever_it_stands() -> None:
    tokens = tiny.tokenizer()
    model = far_from_uniform("gemma3_text", tokens)
    rows = demonstrations(tokens)
    key = (0, "sft", "neftune", 4)
    padded = noise_of(model, rows, [[5], [2]], collate([rows[5], rows[2]], tokens), 5.0, key)
    packed = noise_of(model, rows, [[2, 5]], pack([[rows[2], rows[5]]], tokens), 5.0, key)
    assert padded is not None
    assert packed is not None
    long, short = len(rows[2].input_ids), len(rows[5].input_ids)
    assert torch.equal(packed[0, :long], padded[1, :long])
    assert torch.equal(packed[0, long:], padded[0, :short])
    assert not padded[1, long:].any()
    # Uniform within alpha / sqrt(L d): the norm is alpha / sqrt(3) but for chance.
    assert packed[0, :long].abs().max() <= 5.0 / math.sqrt(long * 16)
    assert packed[0, :long].norm().item() == pytest.approx(5.0 / math.sqrt(3), rel=0.1)
    other = noise_of(model, rows, [[5]], collate([rows[5]], tokens), 5.0, (0, "sft", "neftune", 5))
    assert other is not None
    assert not torch.equal(other[0], padded[0, :short])
    assert noise_of(model, rows, [[5]], collate([rows[5]], tokens), 0.0, key) is None


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gemma2"])
def test_noise_is_added_to_what_the_first_layer_reads(kind: str) -> None:
    tokens = tiny.tokenizer()
    model = far_from_uniform(kind, tokens)
    batch = collate(demonstrations(tokens)[:2], tokens)
    noise = torch.rand((*batch.input_ids.shape, 16))
    embedded = model.get_input_embeddings()(batch.input_ids)
    seen: list[Tensor] = []
    model.base_model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with noisy_embeddings(model, noise), torch.no_grad():
        token_logprobs(model, batch.input_ids, batch.attention_mask, batch.wanted)
    assert torch.equal(seen[0], embedded + noise)
    # Once the step is over nothing of it is left, so that evaluation sees none.
    with torch.no_grad():
        token_logprobs(model, batch.input_ids, batch.attention_mask, batch.wanted)
    assert torch.equal(seen[1], embedded)


def test_noise_changes_the_step_and_not_the_evaluation() -> None:
    tokens = tiny.tokenizer()
    model = far_from_uniform("llama", tokens)
    still, noisy = token_rows(model, tokens), token_rows(model, tokens, neftune_alpha=5.0)
    assert step_of(still, [0, 1])[0] != pytest.approx(step_of(noisy, [0, 1])[0], abs=1e-4)
    before = mean_loss(model, tokens, still.rows, precision="fp32")
    untouched = copy.deepcopy(model)
    assert before == mean_loss(untouched, tokens, still.rows, precision="fp32")


def test_micro_batches_of_noisy_packed_rows_add_up() -> None:
    tokens = tiny.tokenizer()
    rows = token_rows(far_from_uniform("qwen3", tokens), tokens, packing=True, neftune_alpha=5.0)
    parts: list[Part] = list(rows.parts(list(range(8)), 0, 1))
    assert len(parts) > 1
    assert sum(float(part.metrics["tokens"]) for part in parts) == sum(
        sum(rows.rows[i].trainable) for i in range(8)
    )
    assert_equal_steps(rows, rows, list(range(8)), size=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"neftune_alpha": -1.0}, "neftune_alpha"),
        ({"average": "batch"}, "average"),
        ({"packing": 2}, "packing"),
    ],
)
def test_wrong_keys_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(SFTConfig, values, "sft")
