"""Muon by hand, by an SVD and beside torch's own; and as every training takes it."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from prefloop.config.parse import parse
from prefloop.config.sft import SFTConfig
from prefloop.config.training import TrainingConfig
from prefloop.errors import ConfigError, StopRequested
from prefloop.models.hidden_matrices import hidden_matrices
from prefloop.training import muon
from prefloop.training.distribution import Ranks
from prefloop.training.muon import Muon, orthogonalised
from prefloop.training.optimisation import Optimisation, rate_factor
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import TRAININGS, ppo_trainer

MUON: dict[str, Any] = {"optimizer": "muon"}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def polynomial(s: Any, times: int = 5) -> Any:
    """Of singular values, those of five iterations."""
    for _ in range(times):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


def by_svd(matrix: Tensor) -> Tensor:
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ torch.diag(polynomial(s / s.square().sum().sqrt())) @ vh


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (7, 7)])
def test_the_iterations_are_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    stack = torch.stack([drawn(*shape), 1e-3 * drawn(*shape, seed=1), 1e3 * drawn(*shape, seed=2)])
    expected = torch.stack([by_svd(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalised(stack), expected, atol=1e-11, rtol=0)
    single = orthogonalised(stack.float())
    assert single.dtype == torch.float32, "a CPU computes as precisely as it is given"
    torch.testing.assert_close(single.double(), expected, atol=2e-4, rtol=0)


@given(st.integers(2, 16), st.integers(0, 16), st.floats(1, 100), st.integers(0, 99))
def test_singular_values_end_near_1(rows: int, more: int, condition: float, seed: int) -> None:
    u = torch.linalg.qr(drawn(rows, rows, seed=seed))[0]
    v = torch.linalg.qr(drawn(rows + more, rows, seed=seed + 100))[0]
    matrix = u * torch.logspace(0, -torch.tensor(condition).log10().item(), rows).double() @ v.T
    found = torch.linalg.svdvals(orthogonalised(matrix.unsqueeze(0).float())[0])
    assert found.min() > 0.68
    assert found.max() < 1.21


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonalised(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def moved(gradients: list[Tensor], optimiser: type[torch.optim.Optimizer], **options: Any) -> list[Tensor]:
    """By how much each step moves a matrix of zeros that has these gradients."""
    parameter, path = nn.Parameter(torch.zeros_like(gradients[0])), []
    optimiser_ = optimiser([parameter], **options)
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimiser_.step()
        path.append(parameter.detach() - before)
    return path


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (16, 48)])
def test_steps_are_those_of_torch_up_to_its_bf16(shape: tuple[int, int]) -> None:
    gradients = [drawn(*shape, seed=seed).float() for seed in range(3)]
    ours = moved(gradients, Muon, lr=0.1)
    theirs = moved(
        gradients, torch.optim.Muon, lr=0.1, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() < 2e-2 * other.norm()


@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_updates_have_the_root_mean_square_of_adamws(shape: tuple[int, int]) -> None:
    (update,) = moved([drawn(*shape).float()], Muon, lr=1.0)
    assert 0.2 * 0.68 < update.square().mean().sqrt() < 0.2 * 1.21


def test_two_steps_by_hand() -> None:
    # Diagonal matrices stay diagonal, with the polynomial of their entries over their norm.
    weight = nn.Parameter(torch.diag(torch.tensor([2.0, -1.0], dtype=torch.float64)))
    optimiser, rate, decay = Muon([weight], lr=0.1, weight_decay=0.5), 0.1 * 0.2 * 2**0.5, 1 - 0.1 * 0.5
    expected, mean = [2.0, -1.0], [0.0, 0.0]
    for gradient in ([3.0, 4.0], [0.0, -100.0]):
        weight.grad = torch.diag(torch.tensor(gradient, dtype=torch.float64))
        optimiser.step()
        mean = [0.95 * m + 0.05 * g for m, g in zip(mean, gradient, strict=True)]
        ahead = [0.95 * m + 0.05 * g for m, g in zip(mean, gradient, strict=True)]
        norm = sum(n**2 for n in ahead) ** 0.5
        expected = [w * decay - rate * polynomial(n / norm) for w, n in zip(expected, ahead, strict=True)]
        assert weight.detach().diag().tolist() == pytest.approx(expected, rel=1e-12)
    assert weight.detach()[0, 1] == 0
    assert optimiser.state[weight]["momentum"].diag().tolist() == pytest.approx(mean, rel=1e-12)


def test_decay_is_decoupled_from_the_gradient() -> None:
    weight = nn.Parameter(drawn(3, 4))
    before = weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), before * 0.95, rtol=1e-12, atol=0)


@pytest.mark.parametrize("elements", [1, 100, 2**26])
def test_experts_and_transposed_matrices_move_as_each_would_alone(elements: int) -> None:
    gradients = [drawn(3, 6, 8), drawn(6, 8, seed=1), drawn(8, 6, seed=2), drawn(6, 9, seed=3)]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    optimiser = Muon(parameters, lr=1.0)
    with mock.patch.object(muon, "STACK_ELEMENTS", elements):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimiser.step()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        scale = 0.2 * max(gradient.shape[-2:]) ** 0.5
        for own, alone in zip(
            parameter.detach().view(-1, *gradient.shape[-2:]),
            gradient.view(-1, *gradient.shape[-2:]),
            strict=True,
        ):
            torch.testing.assert_close(own, -scale * by_svd(alone), atol=1e-11, rtol=0)


def test_what_has_no_gradient_stays_as_it_is() -> None:
    still, other = nn.Parameter(drawn(2, 2)), nn.Parameter(drawn(2, 2))
    before = still.detach().clone()
    optimiser = Muon([still, other], lr=0.1, weight_decay=0.5)
    other.grad = drawn(2, 2, seed=1)
    optimiser.step()
    assert torch.equal(still.detach(), before)
    assert list(optimiser.state) == [other]


@pytest.mark.parametrize("shape", [(), (3,), (1, 2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="matrices and stacks of matrices"):
        Muon([nn.Parameter(torch.zeros(shape))], lr=0.1)


# As `Optimisation` has it.


def with_gradients(model: nn.Module, seed: int = 0) -> None:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = drawn(*parameter.shape, seed=100 * seed + number).float()


def test_adamw_alone_steps_and_saves_as_ever() -> None:
    model = tiny.model(tiny.tokenizer())
    other = copy.deepcopy(model)
    config = TrainingConfig(weight_decay=0.1, max_grad_norm=0.0, schedule="constant", warmup_ratio=0.0)
    optimisation = Optimisation(model, config, 3)
    groups = [
        {"params": [p for p in other.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in other.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(3):
        with_gradients(model, step)
        with_gradients(other, step)
        optimisation.step(step)
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    ours, theirs = io.BytesIO(), io.BytesIO()
    torch.save(optimisation.state_dict(), ours)
    torch.save(plain.state_dict(), theirs)
    assert ours.getvalue() == theirs.getvalue()


def test_both_optimisers_take_the_schedules_rate_and_the_clipped_gradient() -> None:
    model = tiny.model(tiny.tokenizer())
    config = TrainingConfig(**MUON, learning_rate=0.5, weight_decay=0.1, max_grad_norm=0.25, adam_eps=1e6)
    optimisation = Optimisation(model, config, 100)
    hidden = hidden_matrices(model)
    assert optimisation.muon is not None
    assert {id(p) for p in optimisation.muon.param_groups[0]["params"]} == {id(p) for p in hidden}
    with_gradients(model)
    gradients = {id(p): p.grad.clone() for p in model.parameters() if p.grad is not None}
    norm, rate = optimisation.step(0)
    assert norm == pytest.approx(sum(float(g.square().sum()) for g in gradients.values()) ** 0.5, rel=1e-5)
    assert rate == 0.5 * rate_factor(config, 0, 100) < 0.5
    for optimiser in (optimisation.optimiser, optimisation.muon):
        assert {group["lr"] for group in optimiser.param_groups} == {rate}
    assert optimisation.muon.param_groups[0]["weight_decay"] == 0.1
    for parameter in hidden:
        clipped = gradients[id(parameter)] * 0.25 / norm
        torch.testing.assert_close(optimisation.muon.state[parameter]["momentum"], 0.05 * clipped)
    assert len(optimisation.optimiser.state) + len(hidden) == len(optimisation.parameters)
    assert all(p.grad is None for p in model.parameters())


def test_a_state_that_was_saved_goes_on_with_the_same_bytes() -> None:
    model = tiny.model(tiny.tokenizer())
    optimisation = Optimisation(model, TrainingConfig(**MUON), 4)
    for step in (0, 1):
        with_gradients(model, step)
        optimisation.step(step)
    other, file = copy.deepcopy(model), io.BytesIO()
    torch.save(optimisation.state_dict(), file)
    file.seek(0)
    fresh = Optimisation(other, TrainingConfig(**MUON), 4)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for step in (2, 3):
        for module, own in ((model, optimisation), (other, fresh)):
            with_gradients(module, step)
            own.step(step)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_sharded_weights_are_refused() -> None:
    model = tiny.model(tiny.tokenizer())
    with (
        mock.patch("prefloop.training.optimisation.ranks", return_value=Ranks(0, 2, sharded=True)),
        pytest.raises(ConfigError, match="which needs whole matrices") as caught,
    ):
        Optimisation(model, TrainingConfig(**MUON), 1)
    assert caught.value.remedy == "set compute.sharding to none, or optimizer to adamw"


def test_another_optimiser_is_refused_naming_the_nearest() -> None:
    assert parse(SFTConfig, MUON, "sft").optimizer == "muon"
    assert SFTConfig().optimizer == "adamw"
    with pytest.raises(ConfigError, match=r"sft\.optimizer is 'moun'") as caught:
        parse(SFTConfig, {"optimizer": "moun"}, "sft")
    assert caught.value.remedy == "did you mean muon?"


# As trainings have it.


@pytest.mark.parametrize("name", ["base", "reward", "ppo"])
def test_a_training_with_muon_resumes_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    train = TRAININGS[name]
    undisturbed, first, second = StopAfter(), StopAfter(2), StopAfter()
    expected = train(tmp_path / "undisturbed", undisturbed, steps=3, **MUON)
    with pytest.raises(StopRequested):
        train(tmp_path / "stopped", first, steps=3, **MUON)
    found = train(tmp_path / "stopped", second, steps=3, **MUON)
    assert second.resumed_at == 2
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert first.rows + second.rows == undisturbed.rows


def test_micro_batches_add_up_to_the_same_step_with_muon(tmp_path: Path) -> None:
    train, steps = TRAININGS["sft"], {"steps": 2, "batch_size": 8, "learning_rate": 1e-2, "adam_eps": 1.0}
    one = train(tmp_path / "whole", StopAfter(), **steps, **MUON)
    parts = train(tmp_path / "parts", StopAfter(), micro_batch_size=1, **steps, **MUON)
    for key in one:
        torch.testing.assert_close(one[key], parts[key], atol=2e-5, rtol=0)
    adamw = train(tmp_path / "adamw", StopAfter(), **steps)
    assert max(float((one[key] - adamw[key]).abs().max()) for key in one) > 1e-3, "Muon moves further"


def test_muon_lowers_the_loss(tmp_path: Path) -> None:
    recorder = StopAfter()
    TRAININGS["base"](tmp_path / "base", recorder, steps=25, learning_rate=1e-2, **MUON)
    losses = [row["loss"] for row in recorder.rows]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])


def test_a_separate_critic_takes_muon_and_a_head_adamw(tmp_path: Path) -> None:
    trainer = ppo_trainer(tmp_path / "separate", critic_learning_rate=0.5, **MUON)
    critic = trainer.critic_optimisation
    assert critic.muon is not None
    assert critic.muon.param_groups[0]["lr"] == 0.5
    before = [p.detach().clone() for p in critic.parameters]
    with_gradients(trainer.critic)
    critic.step(0)
    assert not any(torch.equal(a, b) for a, b in zip(before, critic.parameters, strict=True))
    shared = ppo_trainer(tmp_path / "shared", critic="shared", **MUON)
    assert shared.critic_optimisation.muon is None
    assert shared.optimisation.muon is not None
