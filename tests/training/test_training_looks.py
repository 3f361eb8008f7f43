"""Looks at a policy on its way: they change nothing, survive a kill, and say what the policy said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.config.direct import DirectConfig
from prefloop.config.parse import parse
from prefloop.config.rejection import RejectionConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.errors import ConfigError, StopRequested
from prefloop.rollout.sampling import Sampler
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.looks import Looks, apart, passes_mark
from tests import tiny
from tests.tiny import StopAfter, StopAtCall
from tests.training.trainings import PROMPTS, TRAININGS, Weights, ppo_trainer

WATCHED = ("dpo", "dpo_with_adapter", "ppo")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("total", "marks", "every", "steps"),
    [
        (10, 5, 1, [2, 4, 6, 8, 10]),
        (12, 5, 1, [3, 5, 8, 10, 12]),
        (3, 5, 1, [1, 2, 3]),
        (7, 1, 1, [7]),
        (7, 0, 1, []),
        (16, 5, 4, [4, 8, 12, 16]),  # the looks there are, where they are fewer
        (100, 5, 5, [20, 40, 60, 80, 100]),
        (11, 3, 2, [4, 8, 11]),  # the last one is no multiple
    ],
)
def test_looks_are_spread_evenly_up_to_the_last_step(
    total: int, marks: int, every: int, steps: list[int]
) -> None:
    asked = [step for step in range(1, total + 1) if step % every == 0 or step == total]
    assert [step for step in asked if passes_mark(step, total, marks, every)] == steps


def test_prompts_set_apart_are_keyed_and_nothing_is_lost() -> None:
    rows = [{"id": str(i), "prompt": f"p{i}"} for i in range(10)]
    others, chosen = apart(rows, 4, (0, "looks"))
    assert len(chosen) == 4
    assert sorted([*others, *chosen], key=lambda row: int(row["id"])) == rows
    assert chosen == sorted(chosen, key=lambda row: int(row["id"]))
    assert apart(rows, 4, (0, "looks")) == (others, chosen)
    assert apart(rows, 4, (1, "looks"))[1] != chosen
    assert {row["id"] for row in apart(rows, 2, (0, "looks"))[1]} < {row["id"] for row in chosen}
    assert apart(rows, 99, (0, "looks")) == ([], rows)


@pytest.mark.parametrize("name", ["dpo", "dpo_with_adapter"])
def test_a_training_that_is_looked_at_ends_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    plain, watched = StopAfter(), StopAfter()
    seen: list[dict[str, Any]] = []
    expected = TRAININGS[name](tmp_path / "plain", plain)
    assert same(TRAININGS[name](tmp_path / "watched", watched, seen=seen), expected)
    assert sorted({row["step"] for row in seen}) == [2, 3, 4, 5, 6]
    looked = [{k: v for k, v in row.items() if not k.startswith("look/")} for row in watched.rows]
    assert looked == plain.rows
    assert "look/length" not in watched.rows[0]
    for row in watched.rows[1:]:
        rows = [each for each in seen if each["step"] == row["step"]]
        assert row["look/length"] == sum(len(each["completion_ids"]) for each in rows) / 3
        assert row["look/ended"] == sum(each["ended"] for each in rows) / 3


def test_keeping_looks_changes_no_on_policy_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Any]] = []
    expected = TRAININGS["ppo"](tmp_path / "kept", StopAfter(), seen=seen)
    assert seen
    monkeypatch.setattr("prefloop.training.selection.LOOKS", 0)
    none: list[dict[str, Any]] = []
    assert same(TRAININGS["ppo"](tmp_path / "not kept", StopAfter(), seen=none), expected)
    assert none == []


@pytest.mark.parametrize("name", WATCHED)
def test_looks_survive_a_stop_at_every_step(name: str, tmp_path: Path) -> None:
    train = TRAININGS[name]
    expected: list[dict[str, Any]] = []
    weights = train(tmp_path / "undisturbed", StopAfter(), seen=expected)
    found: list[dict[str, Any]] = []
    stops = 0
    while True:
        try:
            again = train(tmp_path / "stopped", StopAtCall(2 if name == "ppo" else 1), seen=found)
            break
        except StopRequested:
            stops += 1
    assert stops >= 5
    assert same(again, weights)
    assert len({row["step"] for row in expected}) > 1
    assert [json.dumps(row) for row in found] == [json.dumps(row) for row in expected]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_row_holds_the_answers_log_prob_and_the_key_of_its_noise(temperature: float) -> None:
    tokens = tiny.tokenizer()
    model = tiny.model(tokens).train()
    prompts = [
        {"id": name, "prompt": question} for name, question in zip("abc", tiny.QUESTIONS, strict=False)
    ]
    sampling = SamplingConfig(max_new_tokens=5, temperature=temperature)
    looks = Looks(model, tokens, prompts, sampling, 2, seed=7)
    assert not looks.due(1, 4)
    assert looks.due(2, 4)
    looks.look(2)
    assert model.training
    model.eval()
    encoder = Sampler(model, tokens, sampling).encoder
    for place, row in enumerate(looks.rows):
        assert (row["step"], row["id"], row["prompt"]) == (2, "abc"[place], tiny.QUESTIONS[place])
        ids = encoder.prompt(row["prompt"], 5)
        answer = row["completion_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([ids + answer])).logits[0].double() / temperature
        each = torch.log_softmax(logits, dim=-1)
        expected = sum(float(each[len(ids) - 1 + t, token]) for t, token in enumerate(answer))
        assert row["logprob"] == pytest.approx(expected, abs=1e-4)
        assert row["ended"] == (answer[-1] in encoder.stops)
        assert SamplingConfig(**row["sampling"]) == sampling
        # The key alone gives the answer again, alone in its batch.
        again = Sampler(model, tokens, sampling).sample([row["prompt"]], (), [tuple(row["noise"])])
        assert again.completion_ids == [answer]
        assert again.texts == [row["completion"]]


def test_equal_weights_are_seen_alike_at_every_look() -> None:
    tokens = tiny.tokenizer()
    looks = Looks(tiny.model(tokens), tokens, PROMPTS[:4], SamplingConfig(max_new_tokens=5), 2, seed=0)
    for step in (1, 2):
        looks.look(step)
    first, second = ([{**row, "step": 0} for row in looks.rows if row["step"] == step] for step in (1, 2))
    assert first == second


def test_without_prompts_nothing_is_looked_at() -> None:
    tokens = tiny.tokenizer()
    looks = Looks(tiny.model(tokens), tokens, [], SamplingConfig(max_new_tokens=5), 5, seed=0)
    assert not any(looks.due(step, 5) for step in range(1, 6))


def test_on_policy_looks_are_what_the_selection_saw(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path / "ppo")
    recorder = StopAfter()
    trainer.train(Checkpoints(tmp_path / "ppo", 1e9), recorder)
    kls = {row["step"]: row["select/kl"] for row in recorder.rows if "select/kl" in row}
    rows = trainer.selection.looks
    assert sorted({row["step"] for row in rows}) == sorted(kls) == [2, 4, 5]
    encoder = trainer.selection.engine.encoder
    for step, kl in kls.items():
        ratios = []
        for row in rows:
            if row["step"] == step:
                ids, answer = encoder.prompt(row["prompt"], 8), row["completion_ids"]
                with torch.no_grad():
                    each = trainer.reference(torch.tensor([ids + answer])).logits[0].log_softmax(dim=-1)
                theirs = sum(float(each[len(ids) - 1 + t, token]) for t, token in enumerate(answer))
                ratios.append(row["logprob"] - theirs)
        assert sum(ratios) / len(ratios) == pytest.approx(kl, abs=1e-4)


def test_the_longest_answer_is_half_of_the_longest_row_unless_set() -> None:
    assert DirectConfig(max_length=96).look_sampling == SamplingConfig(48)
    assert DirectConfig(max_length=96, look_tokens=60).look_sampling == SamplingConfig(60)
    assert DirectConfig(max_length=40, look_tokens=60).look_sampling == SamplingConfig(39)


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (DirectConfig, {"looks": -1}),
        (DirectConfig, {"look_prompts": 0}),
        (DirectConfig, {"look_tokens": -1}),
        (RejectionConfig, {"looks": -1}),
        (RejectionConfig, {"look_prompts": 0}),
    ],
)
def test_what_cannot_be_is_refused(cls: type, values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(values))} must be at least"):
        parse(cls, values, "section")
