"""What benchmarks/speed trains and how its work is counted, by hand and by torch's own counter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from benchmarks.alongside import offline
from benchmarks.alongside.material import Material
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Row
from benchmarks.peers.clock import Clock
from benchmarks.timing import jobs, material, running, sampled, work
from benchmarks.timing.flops import Pass, Shape
from benchmarks.timing.sizes import CPU_LENGTHS, CPU_SIZES, GPU_SIZES, METHODS, SAMPLING, Lengths, Size
from prefloop.config.compute import ComputeConfig
from prefloop.data.templates import ChatEncoder
from prefloop.training.environment import resolve

SIZE = Size("tiny", 320, 16, 32, 2, 2, 1, 4)
LENGTHS = Lengths("tiny", (2, 5, 12), (2, 6, 14), 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material.make(tmp_path_factory.mktemp("speed"), SIZE, LENGTHS, 48)


def side(method: str, made: Material, scratch: Path, steps: int = 3) -> Side:
    return Side(Row(method, method), made, scratch, jobs.section(method, LENGTHS, steps))


def test_operations_by_hand() -> None:
    shape = Shape(hidden=4, intermediate=6, layers=3, heads=2, kv_heads=1, head_size=2, vocab=10)
    # A block: queries and outputs 4 x 4 each, keys and values 4 x 2 each, three matrices of 4 x 6.
    assert shape.block_weights == 2 * 16 + 2 * 8 + 3 * 24
    # Five tokens: 15 pairs of a token and one that it sees; scores and sums over both heads, of width 2.
    forward = 2 * 3 * 120 * 5 + 2 * 2 * 3 * 4 * 15 + 2 * 10 * 4 * 2
    assert shape.forward(Pass(5, 2)) == forward
    assert shape.step([Pass(5, 2), Pass(5, 2, learned=False)]) == 4 * forward


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_operations_are_those_that_torch_counts(model_type: str) -> None:
    size = dataclasses.replace(SIZE, model_type=model_type)
    config = AutoConfig.for_model(
        model_type,
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        vocab_size=size.vocab_size,
        head_dim=8,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.randint(0, size.vocab_size, (3, 11))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids).logits.sum()
    forward = counter.get_total_flops()
    with counter:
        loss.backward()
    shape = Shape.of(config)
    # The angles of rotary positions are a product, too: (4 x 1) by (1 x 11), once for the batch's positions.
    counted = 3 * shape.forward(Pass(11, 11), causal=False)
    assert counted == pytest.approx(forward, rel=1e-3)
    assert 3 * counted == pytest.approx(counter.get_total_flops() + forward, rel=0.01)


def test_a_word_is_a_token_and_the_tokenizer_loads_as_any_other(made: Material) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.policy)
    assert len(tokenizer) == SIZE.vocab_size
    assert tokenizer("w3 w1 w3", add_special_tokens=False)["input_ids"] == [8, 6, 8]
    assert tokenizer.decode([8, 6, 8]) == "w3 w1 w3"
    chat = [{"role": "user", "content": "w0 w1"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert [tokenizer.decode([i]) for i in ids] == ["<|user|>", "w0", "w1", "<|end|>", "<|assistant|>"]
    model = AutoModelForCausalLM.from_pretrained(made.policy)
    assert model.config.tie_word_embeddings
    assert model.dtype == torch.float32


def test_conversations_have_lengths_within_their_bounds_and_prompts_of_their_own(made: Material) -> None:
    rows = made.conversations
    lengths = {name: [len(row[name][0]["content"].split()) for row in rows] for name in ("prompt", "chosen")}
    assert min(lengths["prompt"]) >= 2
    assert max(lengths["prompt"]) <= 12
    assert min(lengths["chosen"]) >= 2
    assert max(lengths["chosen"]) <= 14
    assert len(set(lengths["prompt"])) > 3
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 48
    assert rows == material.conversations(SIZE.vocab_size, LENGTHS, 48)


def test_the_model_ends_a_text_with_the_chance_it_was_given(made: Material) -> None:
    model, tokenizer = (kind.from_pretrained(made.policy) for kind in (AutoModelForCausalLM, AutoTokenizer))
    seen = torch.randint(5, SIZE.vocab_size, (64, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chances = model(input_ids=seen).logits.softmax(dim=-1)[..., tokenizer.eos_token_id]
    assert float(chances.mean()) == pytest.approx(1 / 6, rel=0.1)
    # It is much the same after every token, so that lengths are geometric and one update changes little.
    low, high = chances.quantile(0.01), chances.quantile(0.99)
    assert 0.5 / 6 < float(low) < float(high) < 2 / 6


def test_a_steps_work_is_its_rows(made: Material, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made.policy)
    every = {"sft": 8, "dpo": 8, "reward": 8, "kto": 16}
    for method, sequences in every.items():
        steps = list(work.passes(side(method, made, tmp_path)))
        assert [len(step) for step in steps] == [sequences] * 3
    learned = [one for one in next(iter(work.passes(side("kto", made, tmp_path)))) if one.learned]
    assert len(learned) == 8
    assert all(one.wanted == 0 for one in next(iter(work.passes(side("reward", made, tmp_path)))))
    encoder = ChatEncoder(tokenizer, LENGTHS.context)
    whole = {len(encoder.completions(r["prompt"], [r["chosen"]])[0].input_ids) for r in made.conversations}
    assert {one.tokens for one in next(iter(work.passes(side("sft", made, tmp_path))))} <= whole
    tokens, operations = work.per_step(side("sft", made, tmp_path))
    assert 8 * min(whole) <= tokens <= 8 * max(whole)
    assert operations > 0
    assert work.per_step(side("ppo", made, tmp_path)) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_prefloops_side_trains_and_notes_each_step(method: str, made: Material, tmp_path: Path) -> None:
    clock = Clock()
    if method in SAMPLING:
        sampled.run(side(method, made, tmp_path), 6, clock)
        assert len(clock.sampled) == 3
        assert 16 <= min(clock.sampled) <= max(clock.sampled) <= 16 * 6
    else:
        offline.run(side(method, made, tmp_path), clock)
    found = clock.as_dict()
    assert len(found["seconds"]) == 2
    assert len(found["losses"]) == 3
    assert found["memory"]["peak"] > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tuned", [True, False])
def test_the_peer_takes_the_same_rows_a_step(
    method: str, tuned: bool, made: Material, tmp_path: Path
) -> None:
    one = side(method, made, tmp_path)
    job: dict[str, Any] = jobs.timed(one, LENGTHS, tuned=tuned)
    peer, rows = job["peer"], one.section["batch_size"]
    assert peer["per_device_train_batch_size"] * peer["gradient_accumulation_steps"] == rows
    if method == "ppo":  # accumulating, TRL's loop makes fewer updates than minibatches
        assert peer["gradient_accumulation_steps"] == 1
    assert peer["gradient_checkpointing"] is not tuned
    assert peer["bf16"] is False
    assert rows == LENGTHS.rows(method)
    if method not in SAMPLING:
        assert len(job["rows"]) == 3 * rows
    else:
        assert len(job["prompts"]) == 3 * rows // jobs.GROUP.get(method, 1)
        assert jobs.compared(method, LENGTHS).method == method


def test_losses_are_compared_in_float32_on_both_sides(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, Any]] = []

    def answer(precision: str, variables: Mapping[str, str]) -> dict[str, Any]:
        told.append({"precision": precision, **variables})
        return {"answers": {"row": {"losses": [1.0, 0.5]}}}

    def ask(python: Path, script: str, given: list[Any], *_: Any, threads: int, **variables: str) -> Any:
        return answer("bf16" if given[0]["peer"]["bf16"] else "fp32", variables)

    monkeypatch.setattr(running, "environment", lambda *_: Path("python"))
    monkeypatch.setattr(running, "ask", ask)
    monkeypatch.setattr(running, "answers", lambda *given: answer(given[2][0]["precision"], given[-1]))
    machine = dataclasses.replace(resolve(ComputeConfig()), precision="bf16")
    one = dataclasses.replace(side("sft", made, tmp_path), precision="bf16")
    asked = running.Asked(machine, 1, 1, plain=False)
    assert running.in_float32(one, LENGTHS, asked) == (0.0, "")
    assert told == [{"precision": "fp32"}] * 2
    told.clear()
    for run in running.trainings(one, LENGTHS, asked).values():
        run()
    assert told == [{"precision": "bf16"}, {"precision": "bf16", "ACCELERATE_MIXED_PRECISION": "bf16"}]


def test_sizes_are_what_they_are_called() -> None:
    for size, low, high in (("1m", 0.5e6, 1.2e6), ("7m", 6.5e6, 7.5e6), ("30m", 28e6, 32e6)):
        assert low < _parameters(CPU_SIZES[size]) < high
    assert 0.45e9 < _parameters(GPU_SIZES["0.5b"]) < 0.55e9
    assert 1.4e9 < _parameters(GPU_SIZES["1.5b"]) < 1.6e9
    assert all(lengths.context <= 704 for lengths in CPU_LENGTHS.values())


def _parameters(size: Size) -> int:
    shape = Shape(
        size.hidden_size,
        size.intermediate_size,
        size.layers,
        size.heads,
        size.kv_heads,
        size.hidden_size // size.heads,
        size.vocab_size,
    )
    return size.layers * shape.block_weights + size.vocab_size * size.hidden_size
