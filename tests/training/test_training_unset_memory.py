"""Memory is not filled before its first use: a training reads none of it, and so ends the same."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from prefloop.config.compute import ComputeConfig
from prefloop.config.sft import SFTConfig
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.environment import apply, resolve
from prefloop.training.language_model import encode_demonstrations, finetune
from prefloop.training.recorder import Silent
from tests import tiny

deterministic = importlib.import_module("torch.utils.deterministic")


@pytest.fixture
def as_before() -> Iterator[None]:
    threads, fills = torch.get_num_threads(), deterministic.fill_uninitialized_memory
    algorithms = torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(algorithms, warn_only=True)
    deterministic.fill_uninitialized_memory = fills


def weights(folder: Path, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """Of a model that a few demonstrations were learned by."""
    tokenizer = tiny.tokenizer()
    model = tiny.model(tokenizer)
    shown = [{"prompt": asked, "completion": "It is blue."} for asked in tiny.QUESTIONS]
    rows, _ = encode_demonstrations(shown, tokenizer, 48)
    config = SFTConfig(steps=3, batch_size=4, learning_rate=1e-2)
    run = {"seed": 0, "precision": precision, "checkpoints": Checkpoints(folder, 1e9), "recorder": Silent()}
    finetune(model, tokenizer, rows, config, **run)  # type: ignore[arg-type]
    return model.state_dict()


@pytest.mark.usefixtures("as_before")
def test_a_training_ends_the_same_whether_unset_memory_is_filled(tmp_path: Path) -> None:
    apply(resolve(ComputeConfig(device="cpu")), threads=1)
    assert torch.are_deterministic_algorithms_enabled()
    assert not deterministic.fill_uninitialized_memory
    found = weights(tmp_path / "plain")
    deterministic.fill_uninitialized_memory = True  # with NaN, which would spread
    filled = weights(tmp_path / "filled")
    assert all(torch.equal(found[name], filled[name]) for name in found)
    assert all(bool(x.isfinite().all()) for x in found.values())
