"""On-policy trainers and the engine that samples for them: what is pushed, measured and corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.errors import StopRequested
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.on_policy import OnPolicyTrainer
from tests.rollout import fake_vllm
from tests.tiny import StopAfter, StopAtCall
from tests.training.trainings import (
    group_trainer,
    online_dpo_trainer,
    ppo_trainer,
    rejection_trainer,
    weights,
)

MISMATCH = {"engine/mismatch_mean", "engine/mismatch_max", "engine/mismatch_kl"}


def trainer_of(method: str, folder: Path, **changes: Any) -> OnPolicyTrainer[Any]:
    if method == "ppo":
        return ppo_trainer(folder, **changes)
    if method == "online_dpo":
        return online_dpo_trainer(folder, **changes)
    return group_trainer(method, folder, **changes)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> type[fake_vllm.LLM]:
    return fake_vllm.install(monkeypatch)


@pytest.mark.parametrize("method", ["ppo", "grpo", "online_dpo"])
def test_the_mismatch_is_logged_and_that_of_rounding(method: str, tmp_path: Path) -> None:
    recorder = StopAfter()
    trainer_of(method, tmp_path / method, steps=2).train(Checkpoints(tmp_path / "c", 1e9), recorder)
    for row in recorder.rows:
        assert row.keys() >= MISMATCH
        assert 0 <= row["engine/mismatch_mean"] <= row["engine/mismatch_max"] < 1e-4
        assert 0 <= row["engine/mismatch_kl"] < 1e-6
        assert "engine/capped" not in row


@pytest.mark.parametrize("method", ["ppo", "grpo", "online_dpo"])
def test_every_rollout_batch_is_sampled_by_the_weights_before_it(
    method: str, vllm: type[fake_vllm.LLM], tmp_path: Path
) -> None:
    recorder = StopAfter()
    changes = {"engine": "vllm", "steps": 3, "select_every": 2, "learning_rate": 0.03}
    trainer = trainer_of(method, tmp_path / method, **changes)
    seen: list[int] = []
    draw = trainer.collector.draw

    def watched(indices: Any, step: int) -> Any:
        scored = draw(indices, step)
        assert set(scored.rollouts.versions) == {step}
        seen.append(step)
        return scored

    trainer.collector.draw = watched  # type: ignore[method-assign]
    trainer.train(Checkpoints(tmp_path / "c", 1e9), recorder)
    assert seen == [0, 1, 2]
    # Weights that were not pushed would show as a mismatch far above rounding.
    assert all(row["engine/mismatch_max"] < 1e-4 for row in recorder.rows)
    (llm,) = vllm.made
    done = [call for call in llm.calls if call in ("reload_weights", "generate", "shutdown")]
    push = "reload_weights"
    # Looks at held-out prompts follow steps 2 and 3; the first shares its weights with the third batch.
    expected = [push, "generate", push, "generate", push, "generate", "generate", push, "generate"]
    assert done == [*expected, "shutdown"]


def test_a_training_on_another_engine_goes_on_after_a_stop(vllm: Any, tmp_path: Path) -> None:
    changes = {"engine": "vllm", "steps": 3, "select_every": 3}
    whole = StopAfter()
    trainer = group_trainer("grpo", tmp_path / "whole", **changes)
    trainer.train(Checkpoints(tmp_path / "whole", 1e9), whole)
    expected = weights(trainer.policy)
    first, second = StopAfter(2), StopAfter()
    with pytest.raises(StopRequested, match="stopped after step 2"):
        group_trainer("grpo", tmp_path / "cut", **changes).train(Checkpoints(tmp_path / "cut", 1e9), first)
    trainer = group_trainer("grpo", tmp_path / "cut", **changes)
    trainer.train(Checkpoints(tmp_path / "cut", 1e9), second)
    assert first.rows + second.rows == whole.rows
    assert all(torch.equal(p, expected[name]) for name, p in weights(trainer.policy).items())
    assert all(llm.calls[-1] == "shutdown" for llm in vllm.made)


def test_rejection_pushes_its_weights_before_each_round(vllm: type[fake_vllm.LLM], tmp_path: Path) -> None:
    trainer = rejection_trainer(tmp_path / "rejection", engine="vllm", rounds=2)
    trainer.train(Checkpoints(tmp_path / "c", 1e9), StopAfter())
    done = [call for call in vllm.made[0].calls if call in ("reload_weights", "generate", "shutdown")]
    assert done == ["reload_weights", "generate", "reload_weights", "generate", "shutdown"]


@pytest.mark.parametrize("method", ["ppo", "grpo", "reinforce"])
def test_a_tokens_policy_loss_is_weighted_by_how_much_likelier_the_trainer_has_it(
    method: str, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"kl_coef": 0.0, "select_kl": 0.0}
    if method == "grpo":
        changes["normaliser"] = "tokens"
    if method == "ppo":
        changes["value_coef"] = 0.0
    plain = trainer_of(method, tmp_path / method, **changes)
    corrected = trainer_of(method, tmp_path / method, importance_cap=1.2, **changes)
    experience, _ = corrected.collect(0)
    mask = experience.batch.wanted
    assert corrected.gap.weights(experience).sub(1).abs().max() < 1e-4  # type: ignore[union-attr]
    # An engine that had every token at half or twice the trainer's probability, by turns.
    turns = torch.arange(mask.numel()).view_as(mask) % 2 * 2 - 1
    behaviour = experience.logprobs + turns * mask * torch.tensor(2.0).log()
    experience = type(experience)(**{**vars(experience), "behaviour": behaviour})
    figures = corrected.gap.figures(experience.logprobs, behaviour, mask)
    assert figures["engine/mismatch_mean"] == pytest.approx(0.693147, rel=1e-4)
    assert figures["engine/capped"] == pytest.approx(float((turns[mask] < 0).float().mean()))
    rows = [0, 1, 2, 5]
    # The ratio to the old policy is still 1, so that a token's loss is minus its advantage.
    known = torch.where(turns < 0, torch.tensor(1.2), torch.tensor(0.5))
    tokens = int(mask[rows].sum())
    advantages = experience.advantages
    expected = -float((advantages * known)[rows][mask[rows]].sum()) / tokens
    uncorrected = -float(advantages[rows][mask[rows]].sum()) / tokens
    found = sum(part.metrics["policy_loss"] for part in corrected.parts(experience, rows, 0))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
    without = sum(part.metrics["policy_loss"] for part in plain.parts(experience, rows, 0))
    assert without == pytest.approx(uncorrected, rel=1e-3, abs=1e-5)
    assert abs(expected - uncorrected) > 1e-3


def test_a_correction_of_nothing_changes_next_to_nothing(tmp_path: Path) -> None:
    rows = []
    for cap in (0.0, 2.0):
        recorder = StopAfter()
        trainer = group_trainer("grpo", tmp_path / str(cap), steps=2, importance_cap=cap)
        trainer.train(Checkpoints(tmp_path / str(cap), 1e9), recorder)
        rows.append(recorder.rows)
    assert [row["engine/capped"] for row in rows[1]] == [0, 0]
    for without, corrected in zip(*rows, strict=True):
        assert corrected["policy_loss"] == pytest.approx(without["policy_loss"], abs=1e-4)
        assert corrected["grad_norm"] == pytest.approx(without["grad_norm"], rel=1e-2)


def test_a_stop_between_two_updates_keeps_what_the_engine_said(tmp_path: Path) -> None:
    # At a cap of 1 every weight hangs on the rounding between engine and trainer.
    changes = {"steps": 1, "minibatches": 2, "select_kl": 0.0, "importance_cap": 1.0}
    whole = group_trainer("grpo", tmp_path / "whole", **changes)
    whole.train(Checkpoints(tmp_path / "whole", 1e9), StopAfter())
    cut = group_trainer("grpo", tmp_path / "cut", **changes)
    with pytest.raises(StopRequested, match="1 updates of the next"):
        cut.train(Checkpoints(tmp_path / "cut", 1e9), StopAtCall(2))
    trainer = group_trainer("grpo", tmp_path / "cut", **changes)
    trainer.train(Checkpoints(tmp_path / "cut", 1e9), StopAfter())
    expected = weights(whole.policy)
    assert all(torch.equal(p, expected[name]) for name, p in weights(trainer.policy).items())
