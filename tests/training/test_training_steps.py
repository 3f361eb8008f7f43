"""Optimiser steps: accumulation, schedule, decay, the order of rows, and what stops a training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from prefloop.config.training import TrainingConfig
from prefloop.data.batching import Order, chunks, pad, steps_in
from prefloop.errors import DataError, TrainingError
from prefloop.training.noise import permutation, uniforms
from prefloop.training.optimisation import Optimisation, rate_factor
from prefloop.training.reward import fit_reward_model
from tests import tiny
from tests.tiny import StopAfter
from tests.training import trainings
from tests.training.trainings import SMOOTH, TRAININGS, learn, ppo_trainer


@pytest.mark.parametrize("name", TRAININGS)
def test_eight_micro_batches_of_one_are_one_of_eight(name: str, tmp_path: Path) -> None:
    steps = {"steps": 2, "batch_size": 8, **SMOOTH}
    whole, parts = StopAfter(), StopAfter()
    one = TRAININGS[name](tmp_path / "whole", whole, micro_batch_size=0, **steps)
    other = TRAININGS[name](tmp_path / "parts", parts, micro_batch_size=1, **steps)
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=1e-6, rtol=0)
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_recomputed_activations_give_the_same_step(tmp_path: Path) -> None:
    for name in ("sft", "reward", "dpo", "dpo_with_adapter", "kto", "ppo"):
        one = TRAININGS[name](tmp_path / "kept", StopAfter(), steps=1, **SMOOTH)
        other = TRAININGS[name](
            tmp_path / "recomputed", StopAfter(), steps=1, gradient_checkpointing=True, **SMOOTH
        )
        for key in one:
            torch.testing.assert_close(one[key], other[key], atol=1e-6, rtol=0)


def test_each_training_lowers_its_own_loss(tmp_path: Path) -> None:
    for name in ("base", "sft", "reward", "dpo", "kto", "orpo", "simpo"):
        recorder = StopAfter()
        TRAININGS[name](tmp_path / name, recorder, steps=25, learning_rate=1e-2, max_grad_norm=1.0)
        losses = [row["loss"] for row in recorder.rows]
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), name


def test_a_nan_stops_the_training_and_says_where(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"sft: the loss or gradient became nan at step \d") as caught:
        TRAININGS["sft"](tmp_path / "scratch", StopAfter(), learning_rate=1e30, max_grad_norm=0.0)
    assert "learning rate" in caught.value.remedy
    assert not list((tmp_path / "scratch").glob("checkpoint-*"))


def test_the_rate_by_hand() -> None:
    linear = TrainingConfig(schedule="linear", warmup_ratio=0.2)
    # Ten steps, two of warm-up: 1/3 and 2/3 of the peak, then eight steps from the peak down to 1/8 of it.
    found = [rate_factor(linear, step, 10) for step in range(10)]
    assert found == pytest.approx([1 / 3, 2 / 3] + [1 - i / 8 for i in range(8)])
    cosine = TrainingConfig(schedule="cosine", warmup_ratio=0.0)
    assert [rate_factor(cosine, step, 4) for step in range(4)] == pytest.approx(
        [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    constant = TrainingConfig(schedule="constant", warmup_ratio=0.0)
    assert {rate_factor(constant, step, 4) for step in range(4)} == {1.0}


@given(st.sampled_from(["constant", "linear", "cosine"]), st.floats(0, 1), st.integers(1, 200), st.data())
def test_every_step_moves(schedule: str, warmup: float, total: int, data: st.DataObject) -> None:
    config = TrainingConfig(schedule=schedule, warmup_ratio=warmup)  # type: ignore[arg-type]
    step = data.draw(st.integers(0, total - 1))
    assert 0 < rate_factor(config, step, total) <= 1


def test_weight_decay_is_for_matrices_alone() -> None:
    module = nn.Linear(2, 2)
    before = [p.detach().clone() for p in (module.weight, module.bias)]
    config = TrainingConfig(learning_rate=0.1, weight_decay=0.5, warmup_ratio=0.0, schedule="constant")
    optimisation = Optimisation(module, config, 1)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimisation.step(0)
    torch.testing.assert_close(module.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(module.bias.detach(), before[1])


def test_fused_steps_are_those_of_the_definition() -> None:
    """Algorithm 2 of Loshchilov and Hutter 2019, written out in float64."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2, bias=False)
    config = TrainingConfig(learning_rate=0.05, weight_decay=0.1, warmup_ratio=0.0, schedule="constant")
    weight = module.weight.detach().double().clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    optimisation = Optimisation(module, config, 5)
    for step in range(1, 6):
        gradient = torch.randn(2, 3) * 0.1  # whose norm is below the limit
        module.weight.grad = gradient.clone()
        optimisation.step(step - 1)
        first = config.adam_beta1 * first + (1 - config.adam_beta1) * gradient.double()
        second = config.adam_beta2 * second + (1 - config.adam_beta2) * gradient.double() ** 2
        corrected = first / (1 - config.adam_beta1**step)
        spread = (second / (1 - config.adam_beta2**step)).sqrt() + config.adam_eps
        weight -= 0.05 * (corrected / spread + 0.1 * weight)
        torch.testing.assert_close(module.weight.detach().double(), weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("limit", "norm_after"), [(1.0, 1.0), (10.0, 5.0), (0.0, 5.0)])
def test_gradients_are_clipped_to_the_global_norm(limit: float, norm_after: float) -> None:
    module = nn.Linear(1, 1)
    config = TrainingConfig(learning_rate=1.0, max_grad_norm=limit, adam_eps=1e6, warmup_ratio=0.0)
    before = torch.stack([p.detach().clone().flatten()[0] for p in module.parameters()])
    module.weight.grad, module.bias.grad = torch.tensor([[3.0]]), torch.tensor([4.0])
    norm, rate = Optimisation(module, config, 1).step(0)
    assert (norm, rate) == (5.0, 1.0)
    # With a huge epsilon, AdamW's first step is the gradient over epsilon.
    moved = before - torch.stack([p.detach().flatten()[0] for p in module.parameters()])
    assert (moved.double().norm() * 1e6).item() == pytest.approx(norm_after, rel=0.1)


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 5))
def test_each_epoch_is_a_permutation(rows: int, batch: int, epoch: int) -> None:
    order = Order(rows, batch, (0, "x"))
    per_epoch = steps_in(rows, batch, 1, 0)
    seen = [i for step in range(per_epoch) for i in order.step(epoch * per_epoch + step)]
    assert sorted(seen) == list(range(rows))


@given(st.integers(1, 50), st.integers(1, 12), st.lists(st.integers(0, 40), max_size=8))
def test_any_step_can_be_named_without_those_before(rows: int, batch: int, steps: list[int]) -> None:
    through = Order(rows, batch, (0, "x"))
    expected = [through.step(step) for step in range(41)]
    jumping = Order(rows, batch, (0, "x"))
    assert [jumping.step(step) for step in steps] == [expected[step] for step in steps]


def test_steps_win_over_epochs() -> None:
    assert steps_in(10, 4, 2, 0) == 6
    assert steps_in(10, 4, 2, 5) == 5


def test_noise_depends_on_its_key_alone() -> None:
    both = uniforms((0, "a"), [(3,), (5,)], 4)
    assert torch.equal(both[1], uniforms((0, "a"), [(5,)], 4)[0])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(both, uniforms((1, "a"), [(3,), (5,)], 4))
    # A longer draw begins with the shorter one.
    assert torch.equal(both, uniforms((0, "a"), [(3,), (5,)], 9)[:, :4])
    assert sorted(permutation((0, "b"), 9)) == list(range(9))


def test_padding_is_on_the_right_and_nowhere_wanted() -> None:
    batch = pad([[5, 6, 7], [8]], [[False, True, True], [True]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.attention_mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.wanted.tolist() == [[False, True, True], [True, False, False]]
    assert [list(c) for c in chunks(range(5), 2)] == [[0, 1], [2, 3], [4]]
    assert [list(c) for c in chunks(range(5), 0)] == [[0, 1, 2, 3, 4]]


def test_a_reward_model_without_an_order_is_refused(tmp_path: Path) -> None:
    from prefloop.config.reward import RewardConfig
    from prefloop.data.comparisons import Ranking
    from prefloop.models.reward_model import RewardModel
    from prefloop.training.checkpoints import Checkpoints
    from prefloop.training.reward import encode_rankings

    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0)
    ties = encode_rankings(model, [Ranking("a", ["b", "c"], [0, 0])], 32)
    with pytest.raises(DataError, match="no comparison orders"):
        fit_reward_model(
            model,
            ties,
            RewardConfig(),
            seed=0,
            checkpoints=Checkpoints(tmp_path / "scratch", 1.0),
            recorder=StopAfter(),
        )


def test_the_first_ppo_update_sees_the_policy_that_sampled(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path / "ppo", inner_epochs=1, minibatches=1, whiten_advantages=False)
    experience, figures = trainer.collect(0)
    assert figures["objective/kl"] == pytest.approx(0, abs=1e-4)
    # A zero value head predicts 0: with lambda 1 and gamma 1 every token's advantage would be the score.
    assert experience.values.abs().sum().item() == 0
    learnt = learn(trainer, experience, 0)
    assert learnt["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert learnt["clip_fraction"] == 0


def test_only_the_critic_learns_while_it_warms_up(tmp_path: Path) -> None:
    for critic in ("separate", "shared"):
        trainer = ppo_trainer(tmp_path / critic, critic=critic, critic_warmup_steps=1)
        policy, head = trainings.weights(trainer.policy), trainer.critic.head.weight.detach().clone()
        learn(trainer, trainer.collect(0)[0], 0)
        after = trainings.weights(trainer.policy)
        assert all(torch.equal(policy[name], after[name]) for name in policy)
        assert not torch.equal(head, trainer.critic.head.weight.detach())
        learn(trainer, trainer.collect(1)[0], 1)
        moved = trainings.weights(trainer.policy)
        assert any(not torch.equal(policy[name], moved[name]) for name in policy)


def test_a_kl_limit_ends_the_inner_epochs(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path / "ppo", inner_epochs=4, minibatches=1, kl_stop=1e-9)
    figures = learn(trainer, trainer.collect(0)[0], 0)
    assert figures["updates"] == 2  # the first update has no KL yet


def test_the_best_weights_within_the_kl_budget_are_kept(tmp_path: Path) -> None:
    recorder = StopAfter()
    from prefloop.training.checkpoints import Checkpoints

    trainer = ppo_trainer(tmp_path / "ppo", steps=6, select_every=1, learning_rate=1e-2, select_kl=0.5)
    trainer.train(Checkpoints(tmp_path / "scratch", 1e9), recorder)
    looks = [
        (row["select/kl"] <= 0.5, row["select/score"], row["select/kl"], row["step"]) for row in recorder.rows
    ]
    within = [look for look in looks if look[0]]
    best = max(within, key=lambda look: look[1]) if within else min(looks, key=lambda look: look[2])
    assert trainer.selection.best["step"] == best[3]
    kept = trainer.selection.best["policy"]
    assert all(torch.equal(p.detach(), kept[n]) for n, p in trainer.policy.named_parameters())
    held = {row["prompt"] for row in trainer.held_out}
    assert len(trainer.held_out) == 4
    assert len(trainer.prompts) + len(trainer.held_out) == len(trainings.PROMPTS)
    assert held
