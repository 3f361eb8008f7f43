"""Reward models in training: ensembles that stop anywhere, shared prompts, rankings as choices, ties."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.config.reward import EnsembleConfig, RewardConfig
from prefloop.config.training import LoraConfig
from prefloop.data.comparisons import Ranking
from prefloop.errors import DataError, ModelError, StopRequested
from prefloop.models import ragged
from prefloop.models.adapters import attach, has_adapter
from prefloop.models.reward_model import RewardModel
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.reward import encode_rankings, fit_reward_model, raw_scores, shared_prompts
from prefloop.training.reward_ensemble import fit_ensemble
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import RANKINGS, SMOOTH, Weights, weights

SEPARATE, SHARED = EnsembleConfig(members=3), EnsembleConfig(members=3, share_trunk=True)
STEPS = 4  # of a member: 18 rankings, 10 a step, two epochs
TIES = Ranking(tiny.QUESTIONS[0], ["Blue.", "Red."], [1, 1])


def config(**changes: Any) -> RewardConfig:
    return RewardConfig(**{"batch_size": 10, "epochs": 2, "learning_rate": 3e-3, "max_length": 48, **changes})


def fitted(
    folder: Path,
    recorder: StopAfter,
    asked: RewardConfig,
    rankings: list[Ranking] = RANKINGS,
    *,
    width: int = 16,
    every: float = 1e9,
) -> RewardModel:
    trunk = folder.parent / f"trunk-{width}"
    if not trunk.exists():
        tiny.saved(trunk, width=width)
    heads = asked.ensemble.members if asked.ensemble.share_trunk else 1

    def make(member: int) -> RewardModel:
        model = RewardModel.create(trunk, seed=0, member=member, heads=heads)
        model.model = attach(model.model, asked.lora, seed=0, task="SEQ_CLS")
        return model

    model, _ = fit_ensemble(
        make, rankings, asked, seed=0, checkpoints=Checkpoints(folder, every), recorder=recorder
    )
    return model


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Watched(StopAfter):
    """Remembers where the whole training was told to go on."""

    def __init__(self, steps: int = 0) -> None:
        super().__init__(steps)
        self.resumed: list[int] = []
        self.totals: set[int] = set()

    def resume(self, step: int) -> None:
        super().resume(step)
        self.resumed.append(step)

    def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
        super().log(step, total, values)
        self.totals.add(total)


@pytest.mark.parametrize("lora", [0, 2])
def test_members_differ_in_head_and_order_and_the_first_is_the_single_model(
    lora: int, tmp_path: Path
) -> None:
    adapted = LoraConfig(rank=lora)
    recorder, alone = Watched(), StopAfter()
    model = fitted(tmp_path / "several", recorder, config(ensemble=SEPARATE, lora=adapted))
    single = fitted(tmp_path / "one", alone, config(lora=adapted))
    assert model.members == 3
    assert not any(has_adapter(m) for m in (model.model, *model.others))
    assert same(weights(model.model), weights(single.model))
    assert [row["step"] for row in recorder.rows] == list(range(1, 3 * STEPS + 1))
    assert recorder.rows[:STEPS] == alone.rows
    assert recorder.resumed == [0]
    assert recorder.totals == {3 * STEPS}
    name = "0.score.weight"
    trained = [weights(m)[name] for m in (model.model, *model.others)]
    assert not torch.allclose(trained[1], trained[2], atol=1e-3)


def test_the_order_of_rows_depends_on_the_member(tmp_path: Path) -> None:
    trunk = tiny.saved(tmp_path / "trunk")
    results = []
    for member in (0, 1):
        model = RewardModel.create(trunk, seed=0)  # the same head
        rows = encode_rankings(model, RANKINGS, 48)
        checkpoints = Checkpoints(tmp_path / str(member), 1e9)
        fit_reward_model(
            model, rows, config(), seed=0, checkpoints=checkpoints, recorder=StopAfter(), member=member
        )
        results.append(weights(model.model))
    assert not same(*results)


@pytest.mark.parametrize(
    ("stop", "optimizer"),
    [*((stop, "adamw") for stop in (2, STEPS, STEPS + 1, 2 * STEPS + 3, 3 * STEPS)), (STEPS + 2, "muon")],
)
def test_an_ensemble_stopped_in_any_member_resumes_to_the_same_bytes(
    stop: int, optimizer: str, tmp_path: Path
) -> None:
    asked = config(ensemble=SEPARATE, optimizer=optimizer)
    undisturbed = Watched()
    expected = fitted(tmp_path / "undisturbed", undisturbed, asked)
    first, second = Watched(stop), Watched()
    with pytest.raises(StopRequested):
        fitted(tmp_path / "stopped", first, asked)
    second.rows = list(first.rows)  # as the stage's curve is on disk
    model = fitted(tmp_path / "stopped", second, asked)
    assert same(weights(model), weights(expected))
    assert second.rows == undisturbed.rows
    assert second.resumed == [stop]


def test_an_ensemble_killed_between_checkpoints_goes_on_in_the_member_it_was_in(tmp_path: Path) -> None:
    class Killed(Watched):
        def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
            super().log(step, total, values)
            if step == 2 * STEPS + 2:
                raise KeyboardInterrupt

    asked = config(ensemble=SEPARATE)
    undisturbed = Watched()
    expected = fitted(tmp_path / "undisturbed", undisturbed, asked)
    killed, second = Killed(), Watched()
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "killed", killed, asked)
    second.rows = list(killed.rows)
    assert same(weights(fitted(tmp_path / "killed", second, asked)), weights(expected))
    assert second.resumed == [2 * STEPS]
    assert second.rows == undisturbed.rows


def test_a_first_member_that_is_lost_is_trained_again_and_those_after_it_too(tmp_path: Path) -> None:
    asked = config(ensemble=SEPARATE)
    undisturbed = Watched()
    expected = fitted(tmp_path / "undisturbed", undisturbed, asked)
    with pytest.raises(StopRequested):
        fitted(tmp_path / "stopped", Watched(STEPS + 2), asked)
    for state in (tmp_path / "stopped").glob("checkpoint-*/state.pt"):
        state.write_bytes(b"")
    second = Watched()
    assert same(weights(fitted(tmp_path / "stopped", second, asked)), weights(expected))
    assert second.rows == undisturbed.rows


@pytest.mark.parametrize("stop", [2, STEPS + 2])
def test_a_members_checkpoint_of_another_shape_is_refused(stop: int, tmp_path: Path) -> None:
    asked = config(ensemble=SEPARATE)
    with pytest.raises(StopRequested):
        fitted(tmp_path / "stopped", StopAfter(stop), asked)
    with pytest.raises(ModelError, match="the checkpoint of reward does not fit this model"):
        fitted(tmp_path / "stopped", StopAfter(), asked, width=32)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_shared_trunk_resumes_to_the_same_bytes_and_refuses_other_heads(
    optimizer: str, tmp_path: Path
) -> None:
    asked = config(ensemble=SHARED, optimizer=optimizer)
    expected = fitted(tmp_path / "undisturbed", StopAfter(), asked)
    with pytest.raises(StopRequested):
        fitted(tmp_path / "stopped", StopAfter(2), asked)
    fewer = config(ensemble=EnsembleConfig(members=2, share_trunk=True), optimizer=optimizer)
    with pytest.raises(ModelError, match="does not fit"):
        fitted(tmp_path / "stopped", StopAfter(), fewer)
    assert same(weights(fitted(tmp_path / "stopped", StopAfter(), asked)), weights(expected))


def test_heads_on_one_trunk_learn_from_the_sum_of_their_losses(tmp_path: Path) -> None:
    both = StopAfter()
    fitted(tmp_path / "both", both, config(ensemble=EnsembleConfig(members=2, share_trunk=True), steps=1))
    losses, right = [], []
    for member in (0, 1):
        model = RewardModel.create(tmp_path / "trunk-16", seed=0, member=member)
        recorder = StopAfter()
        rows = encode_rankings(model, RANKINGS, 48)
        checkpoints = Checkpoints(tmp_path / str(member), 1e9)
        fit_reward_model(model, rows, config(steps=1), seed=0, checkpoints=checkpoints, recorder=recorder)
        losses.append(recorder.rows[0]["loss"])
        right.append(recorder.rows[0]["accuracy"])
    assert losses[0] != pytest.approx(losses[1], rel=1e-3)
    assert both.rows[0]["loss"] == pytest.approx(sum(losses), rel=1e-6)
    assert both.rows[0]["accuracy"] == pytest.approx(sum(right) / 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"ensemble": SHARED},
        {"loss": "plackett_luce"},
        {"share_prompt": "on"},
        {"share_prompt": "off"},
        {"share_prompt": "on", "ensemble": SHARED, "loss": "plackett_luce"},
    ],
    ids=str,
)
def test_eight_micro_batches_of_one_are_one_of_eight(changes: dict[str, Any], tmp_path: Path) -> None:
    steps = {"steps": 2, "batch_size": 8, **SMOOTH, **changes}
    whole, parts = StopAfter(), StopAfter()
    one = weights(fitted(tmp_path / "whole", whole, config(micro_batch_size=0, **steps)))
    other = weights(fitted(tmp_path / "parts", parts, config(micro_batch_size=1, **steps)))
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-6, rtol=0)
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_shared_prompts_take_the_same_steps(checkpointing: bool, tmp_path: Path) -> None:
    changes = {"steps": 3, "gradient_checkpointing": checkpointing, **SMOOTH}
    apart, shared = StopAfter(), StopAfter()
    one = weights(fitted(tmp_path / "apart", apart, config(share_prompt="off", **changes)))
    other = weights(fitted(tmp_path / "shared", shared, config(share_prompt="on", **changes)))
    # Another way of computing: the last bits differ.
    assert any(not torch.equal(one[key], other[key]) for key in one)
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=0)
    for a, b in zip(apart.rows, shared.rows, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def test_prompts_are_shared_where_that_pays_and_the_trunk_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Ranking("What colour is the lamp? " * 2, ["Blue.", "Red.", "Red, I think."], [0, 1, 2])
    short = Ranking("a", ["It is red, I think. " * 2, "I cannot help with that. " * 2], [0, 1])

    def found(share: str, rankings: list[Ranking], kind: str = "llama", **changes: Any) -> list[int] | None:
        folder = tmp_path / kind
        if not folder.exists():
            tiny.saved(folder, kind=kind)
        model = RewardModel.create(folder, seed=0)
        rows = encode_rankings(model, rankings, 64)
        forest = shared_prompts(model, rows, config(share_prompt=share, **changes))
        return None if forest is None else [len(trees) for trees in forest]

    assert found("auto", [long, short]) == [1, 1]
    assert found("on", [long, short]) == [1, 1]
    assert found("off", [long, short]) is None
    # Where trees are padded and masked, a short prompt of long completions is not worth it.
    with monkeypatch.context() as patch:
        patch.setattr(ragged, "attends_plainly", lambda trunk: False)
        assert found("auto", [long, short]) == [1, 2]
        assert found("on", [long, short]) == [1, 1]
        assert found("auto", [short]) is None
    assert found("on", [long, short], "mistral") is None
    # The masks of a conversation are its own, those of its prompt, too.
    assert found("on", [long, short], lora=LoraConfig(rank=2, dropout=0.1)) is None
    assert found("on", [long, short], lora=LoraConfig(rank=2)) == [1, 1]


def test_rankings_of_ties_alone_are_not_trained_on(tmp_path: Path) -> None:
    for loss in ("bradley_terry", "plackett_luce"):
        plain = fitted(tmp_path / "a", StopAfter(), config(loss=loss))
        mixed = fitted(tmp_path / "b", StopAfter(), config(loss=loss), [TIES, *RANKINGS, TIES])
        assert same(weights(plain), weights(mixed))
        with pytest.raises(DataError, match="all are ties"):
            fitted(tmp_path / "c", StopAfter(), config(loss=loss, ensemble=SEPARATE), [TIES])


def test_plackett_luce_lowers_its_loss_and_is_another_objective(tmp_path: Path) -> None:
    recorder = StopAfter()
    model = fitted(tmp_path / "pl", recorder, config(loss="plackett_luce", steps=25, learning_rate=1e-2))
    losses = [row["loss"] for row in recorder.rows]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    other = fitted(tmp_path / "bt", StopAfter(), config(steps=25, learning_rate=1e-2))
    assert not same(weights(model), weights(other))


def test_raw_scores_hold_every_member_of_every_completion(tmp_path: Path) -> None:
    model = fitted(tmp_path / "several", StopAfter(), config(ensemble=SEPARATE, steps=1))
    rows = encode_rankings(model, RANKINGS[:3], 48)
    found = raw_scores(model, rows, batch_size=2)
    assert [own.shape for own in found] == [(3, 3)] * 3
    for ranking, own in zip(RANKINGS, found, strict=False):
        expected = model.raw([ranking.prompt] * 3, ranking.completions)
        torch.testing.assert_close(own, expected.double(), atol=1e-5, rtol=0)
