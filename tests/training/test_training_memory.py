"""A step that runs out of memory is taken again with half the micro-batch, as if it had been so all along."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefloop.config.training import TrainingConfig
from prefloop.data.batching import chunks
from prefloop.errors import StopRequested, TrainingError
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.loop import Part, train
from prefloop.training.memory import is_out_of_memory
from tests import tiny
from tests.tiny import StopAfter
from tests.training.trainings import TRAININGS

STEPS, BATCH = 5, 8
FIXED = ["base", "sft", "sft_packed", "reward", "dpo", "dpo_with_adapter", "kto", "orpo", "simpo"]
"""Trainings on fixed data."""


def device_full() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def machine_full() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")


class Small(nn.Module):
    """Fits a forward pass of `limit` rows, and says how many each step held."""

    def __init__(self, limit: int, error: Callable[[], Exception]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.limit, self.error = nn.Linear(3, 1), limit, error
        self.sizes: list[int] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.sizes.append(len(rows))
        if len(rows) > self.limit:
            raise self.error()
        result: Tensor = self.layer(rows)
        return result


def fit(
    folder: Path, model: Small, recorder: StopAfter, *, where: str = "forward", **changes: Any
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    data, wanted = (
        torch.randn(STEPS * BATCH, 3, generator=generator),
        torch.randn(STEPS * BATCH, 1, generator=generator),
    )
    config = TrainingConfig(**{"batch_size": BATCH, "learning_rate": 0.1, **changes})

    def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
        rows = range(step * BATCH, (step + 1) * BATCH)
        for group in chunks(rows, micro_batch_size):
            error = model(data[list(group)]) - wanted[list(group)]
            loss = (error**2).sum() / BATCH
            yield Part(loss, {"rows": float(len(group))})
            if where == "backward" and len(group) > model.limit // 2:
                raise model.error()

    return train(
        model,  # type: ignore[arg-type]
        config,
        STEPS,
        parts,
        key=(0, "test"),
        checkpoints=Checkpoints(folder, 1e9),
        recorder=recorder,
        what="test",
    )


@pytest.mark.parametrize("error", [device_full, machine_full])
def test_the_step_is_that_of_a_training_with_the_smaller_micro_batch(
    error: Callable[[], Exception], tmp_path: Path
) -> None:
    disturbed, plain = Small(3, error), Small(8, error)
    recorder, expected = StopAfter(), StopAfter()
    assert fit(tmp_path / "a", disturbed, recorder) == {"out_of_memory": {"micro_batch_size": 2}}
    assert fit(tmp_path / "b", plain, expected, micro_batch_size=2) == {}
    # 8, 4 and then 2 for good.
    assert disturbed.sizes == [8, 4, *[2] * (STEPS * BATCH // 2)]
    assert torch.equal(disturbed.layer.weight, plain.layer.weight)
    assert torch.equal(disturbed.layer.bias, plain.layer.bias)
    for row in recorder.rows:
        assert row.pop("micro_batch_size") == 2
        assert row["rows"] == BATCH
    assert recorder.rows == expected.rows
    said = "out of memory at step 1: goes on with a micro-batch of 2, exempt from byte identity"
    assert recorder.lines == [said]
    assert expected.lines == []


def test_gradients_of_what_fitted_before_are_not_counted_twice(tmp_path: Path) -> None:
    # The first micro-batch of each size above 2 is computed and fed back before memory runs out.
    disturbed, plain = Small(4, device_full), Small(4, device_full)
    recorder, expected = StopAfter(), StopAfter()
    fit(tmp_path / "a", disturbed, recorder, where="backward", micro_batch_size=4)
    fit(tmp_path / "b", plain, expected, micro_batch_size=2)
    assert disturbed.sizes[0] == 4
    assert torch.equal(disturbed.layer.weight, plain.layer.weight)
    assert [row["loss"] for row in recorder.rows] == [row["loss"] for row in expected.rows]


def test_a_resumed_training_keeps_the_size_that_fitted(tmp_path: Path) -> None:
    whole, stopped, resumed = (Small(2, device_full) for _ in range(3))
    fit(tmp_path / "whole", whole, StopAfter())
    with pytest.raises(StopRequested):
        fit(tmp_path / "stopped", stopped, StopAfter(2))
    recorder = StopAfter()
    outcome = fit(tmp_path / "stopped", resumed, recorder)
    assert outcome == {"out_of_memory": {"micro_batch_size": 2}}
    assert set(resumed.sizes) == {2}
    assert recorder.lines == []
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


def test_what_does_not_fit_alone_is_an_error_with_remedies(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="memory runs out with a single example") as caught:
        fit(tmp_path, Small(0, device_full), StopAfter())
    for remedy in ("max_length", "gradient_checkpointing", "lora"):
        assert remedy in caught.value.remedy


def test_an_optimiser_that_does_not_fit_is_not_tried_again(tmp_path: Path) -> None:
    model = Small(8, device_full)

    def full(*args: Any, **options: Any) -> None:
        raise device_full()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", full)
        with pytest.raises(TrainingError, match="the optimiser's state"):
            fit(tmp_path, model, StopAfter())
    assert model.sizes == [8]


def test_other_errors_pass(tmp_path: Path) -> None:
    model = Small(3, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(tmp_path, model, StopAfter())
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("name", FIXED)
def test_every_training_goes_on_with_less(name: str, tmp_path: Path) -> None:
    """Real models in which a forward pass of half a batch with gradient runs out of memory."""
    rows = {"reward": 6, "dpo": 6, "dpo_with_adapter": 6, "orpo": 6, "simpo": 6, "sft_packed": 1}.get(name, 2)
    steps: dict[str, Any] = {"steps": 2, "batch_size": 4}
    if name in ("reward", "dpo", "dpo_with_adapter", "orpo", "simpo"):
        steps["share_prompt"] = "off"  # so that rows of a pass are completions
    whole = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **inputs: Any) -> Any:
        if torch.is_grad_enabled() and tiny.sequences_in(inputs) > rows:
            raise device_full()
        return whole(module, *args, **inputs)

    expected = TRAININGS[name](tmp_path / "plain", StopAfter(), micro_batch_size=1, **steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__call__", call)
        recorder = StopAfter()
        found = TRAININGS[name](tmp_path / "disturbed", recorder, **steps)
    assert len(recorder.lines) == 1
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-4, rtol=1e-3)
