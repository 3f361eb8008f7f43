"""On-policy methods: how draws are keyed, what enters an update, what ends a training, what is kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefloop.config.grpo import GRPOConfig
from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.config.parse import parse
from prefloop.config.ppo import PPOConfig
from prefloop.config.reinforce import ReinforceConfig
from prefloop.config.rejection import RejectionConfig
from prefloop.config.rloo import RLOOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.errors import ConfigError, DataError, StopRequested, TrainingError
from prefloop.objectives.best_of_n import kl_bound
from prefloop.rewards.sources import MissingEnd, Overlong, RewardSum
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.on_policy import OnPolicyTrainer
from prefloop.training.online_dpo import OnlineDPOTrainer
from prefloop.training.rejection import RejectionTrainer
from tests.tiny import StopAfter
from tests.training.trainings import (
    PROMPTS,
    SaysBlue,
    group_trainer,
    learn,
    online_dpo_trainer,
    ppo_trainer,
    rejection_trainer,
    weights,
)


class Constant:
    """A reward that tells nothing apart."""

    def __init__(self, value: float = 0.1) -> None:
        self.value = value

    def score(self, prompts: Any, completions: Any, ended: Any) -> Tensor:
        return torch.full((len(completions),), self.value)


CONSTANT = RewardSum({"rule": (1.0, Constant())})


def test_a_draw_depends_on_prompt_and_number_not_on_its_place(tmp_path: Path) -> None:
    collector = group_trainer("grpo", tmp_path / "grpo").collector
    together = collector.draw([3, 5, 1], 0)
    apart = collector.draw([5], 0)
    assert together.prompts == [3] * 4 + [5] * 4 + [1] * 4
    assert together.rollouts.completion_ids[4:8] == apart.rollouts.completion_ids
    torch.testing.assert_close(together.scores[4:8], apart.scores)
    assert len(set(apart.rollouts.texts)) > 1
    assert collector.draw([5], 1).rollouts.completion_ids != apart.rollouts.completion_ids


@pytest.mark.parametrize(("normaliser", "estimator"), [("sequence", "k3"), ("constant", "k2_sequence")])
def test_the_loss_of_an_update_is_that_of_its_rows_one_by_one(
    normaliser: str, estimator: str, tmp_path: Path
) -> None:
    trainer = group_trainer(
        "grpo", tmp_path / "grpo", normaliser=normaliser, kl_estimator=estimator, kl_in="loss", kl_coef=0.5
    )
    experience, figures = trainer.collect(0)
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    new, _ = trainer.policy_logprobs(experience.batch)
    rows = [1, 3, 4, 6]
    expected = 0.0
    for row in rows:
        real = experience.batch.wanted[row]
        ratio = (new[row] - experience.logprobs[row])[real].exp()
        advantage = experience.advantages[row][real]
        delta = (new[row] - experience.reference[row])[real]
        gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
        kl = ((-delta).exp() - 1 + delta).sum() if estimator == "k3" else delta.sum() ** 2 / 2
        share = 1 / (4 * (int(real.sum()) if normaliser == "sequence" else 8))
        expected -= share * float(gain - 0.5 * kl)
    found = sum(float(part.loss.detach()) for part in trainer.parts(experience, rows, 0))
    assert found == pytest.approx(expected, rel=1e-4)
    assert figures["objective/kl"] == pytest.approx(0, abs=1e-4)


def test_advantages_of_the_first_batch_are_those_of_its_scores(tmp_path: Path) -> None:
    # The policy is still the reference, so that a KL in the reward is 0.
    for method, options in (("grpo", {"kl_in": "reward"}), ("rloo", {}), ("reinforce", {})):
        trainer = group_trainer(method, tmp_path / method, **options)
        scores = trainer.collector.draw(trainer.order.step(0), 0).scores.double()
        experience, _ = trainer.collect(0)
        mask = experience.batch.wanted
        groups = scores.view(2, 4)
        if method == "grpo":
            expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        elif method == "rloo":
            expected = (groups - groups.mean(1, keepdim=True)) * 4 / 3
        else:
            every = torch.cat([scores[i].expand(int(mask[i].sum())) for i in range(8)])
            expected = (scores - every.mean()) / every.std()
        wanted = expected.flatten().unsqueeze(-1) * mask
        torch.testing.assert_close(experience.advantages.double(), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("method", ["grpo", "rloo", "reinforce"])
def test_equal_rewards_leave_the_policy_as_it_is(method: str, tmp_path: Path) -> None:
    trainer = group_trainer(method, tmp_path / method, rewards=CONSTANT, kl_coef=0.0)
    before = weights(trainer.policy)
    experience, figures = trainer.collect(0)
    assert not experience.advantages.any()
    assert figures["groups_equal"] == 1
    assert learn(trainer, experience, 0)["grad_norm"] == 0
    assert all(torch.equal(before[name], p) for name, p in weights(trainer.policy).items())


def test_dynamic_sampling_fills_the_batch_with_groups_that_differ(tmp_path: Path) -> None:
    rule = RewardSum({"rule": (1.0, SaysBlue())})
    options: dict[str, Any] = {"dynamic_sampling": True, "kl_coef": 0.0, "rewards": rule, "batch_size": 32}
    trainer = group_trainer("grpo", tmp_path / "grpo", resample_limit=3, **options)
    first = trainer.collector.draw(trainer.order.step(0), 0).scores.view(8, 4)
    differ = [len(group.unique()) > 1 for group in first]
    assert 0 < sum(differ) < 8
    experience, figures = trainer.collect(0)
    assert len(experience) == 32 - 4 * (figures["groups_left_out"] - figures["groups_further"])
    assert len(experience) > 4 * sum(differ)
    assert (experience.advantages.abs().amax(dim=-1) > 0).all()
    again, _ = group_trainer("grpo", tmp_path / "grpo", resample_limit=3, **options).collect(0)
    assert torch.equal(experience.batch.input_ids, again.batch.input_ids)
    alone, counted = group_trainer("grpo", tmp_path / "grpo", **options).collect(0)
    assert len(alone) == 4 * sum(differ)
    assert (counted["groups_left_out"], counted["groups_further"]) == (8 - sum(differ), 0)
    # The groups of the batch itself come first and are the same with and without further ones.
    assert torch.equal(alone.batch.input_ids[:, :8], experience.batch.input_ids[: len(alone), :8])


@pytest.mark.parametrize("method", ["grpo", "rloo", "reinforce"])
def test_a_batch_without_a_group_to_learn_from_makes_no_update(method: str, tmp_path: Path) -> None:
    trainer = group_trainer(
        method, tmp_path / method, rewards=CONSTANT, dynamic_sampling=True, resample_limit=2, steps=2
    )
    before, recorder = weights(trainer.policy), StopAfter()
    trainer.train(Checkpoints(tmp_path / "scratch", 1e9), recorder)
    assert [row["updates"] for row in recorder.rows] == [0, 0]
    # The batch's two prompts, and two further ones in each of two rounds.
    assert [row["groups_left_out"] for row in recorder.rows] == [6, 6]
    assert all(torch.equal(before[name], p) for name, p in weights(trainer.policy).items())


def _refuse(*_: Any) -> Tensor:
    raise AssertionError("the reference was run")


def test_without_a_weight_of_the_kl_the_reference_is_never_run(tmp_path: Path) -> None:
    makers = {"ppo": ppo_trainer, "grpo": lambda folder, **k: group_trainer("grpo", folder, **k)}
    for name, make in makers.items():
        trainer: OnPolicyTrainer[Any] = make(tmp_path / name, kl_coef=0.0, select_kl=0.0, steps=2)
        trainer.reference_logprobs = _refuse  # type: ignore[method-assign]
        trainer.reference.forward = _refuse
        recorder = StopAfter()
        trainer.train(Checkpoints(tmp_path / name / "scratch", 1e9), recorder)
        assert "objective/kl" not in recorder.rows[0]
        assert recorder.rows[0]["objective/return"] == recorder.rows[0]["score"]
        later = make(tmp_path / name, kl_coef=0.0, kl_control="schedule", kl_final=0.1, select_kl=0.0)
        assert "objective/kl" in later.collect(0)[1]


def test_a_scheduled_weight_of_the_kl_reaches_its_end(tmp_path: Path) -> None:
    recorder = StopAfter()
    trainer = ppo_trainer(tmp_path / "ppo", kl_coef=0.2, kl_control="schedule", kl_final=0.0, steps=5)
    trainer.train(Checkpoints(tmp_path / "scratch", 1e9), recorder)
    assert [row["beta"] for row in recorder.rows] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0])


def test_a_reward_model_that_stays_constant_ends_the_training(tmp_path: Path) -> None:
    def train(name: str, folder: str, stop: int = 0) -> StopAfter:
        trainer, recorder = ppo_trainer(tmp_path / "ppo"), StopAfter(stop)
        trainer.collector.rewards = RewardSum({name: (1.0, Constant())})
        trainer.train(Checkpoints(tmp_path / folder, 1e9), recorder)
        return recorder

    with pytest.raises(TrainingError, match="the same in 3 rollout batches in a row, up to step 3") as caught:
        train("reward_model", "scratch")
    assert "score_clip" in caught.value.remedy
    # What was seen before a stop counts after it.
    with pytest.raises(StopRequested):
        train("reward_model", "stopped", stop=2)
    with pytest.raises(TrainingError, match="up to step 3"):
        train("reward_model", "stopped")
    # A rule may well say the same of all for a while.
    assert len(train("rule", "by rule").rows) == 5


def test_a_source_that_gives_no_number_is_named(tmp_path: Path) -> None:
    trainer = group_trainer("grpo", tmp_path / "grpo", rewards=RewardSum({"odd": (1.0, Constant(math.nan))}))
    with pytest.raises(TrainingError, match="reward source odd gave a NaN"):
        trainer.collect(0)


def test_what_a_completion_without_an_end_is_worth() -> None:
    sources = {"rule": (2.0, Constant(0.5)), "missing_eos": (3.0, MissingEnd())}
    arguments: Any = (["a", "b"], ["x", "y"], [True, False])
    total, parts = RewardSum(sources).score(*arguments)
    assert total.tolist() == [1.0, -2.0]
    assert parts["missing_eos"].tolist() == [0.0, -1.0]
    total, _ = RewardSum({"rule": (2.0, Constant(0.5))}, unended=-4.0).score(*arguments)
    assert total.tolist() == [1.0, -4.0]
    total, _ = RewardSum({"overlong": (2.0, Overlong(10, 4))}).score(*arguments, [6, 9])
    assert total.tolist() == [0.0, -1.5]


def test_hard_labels_leave_equal_scores_out_and_pairs_stay_together(tmp_path: Path) -> None:
    trainer = online_dpo_trainer(tmp_path / "dpo", micro_batch_size=1, batch_size=16)
    trainer.collector.rewards = RewardSum({"rule": (1.0, SaysBlue())})
    experience, figures = trainer.collect(0)
    assert 0 < figures["ties"] < 1
    assert len(experience) == 32 - 32 * figures["ties"]
    first, second = experience.preference[::2], experience.preference[1::2]
    assert set(first.tolist()) <= {0.0, 1.0}
    assert torch.equal(first + second, torch.ones_like(first))
    groups = trainer.passes.groups(experience.batch, range(len(experience)))
    assert all(len(group) == 2 and group[0] % 2 == 0 and group[1] == group[0] + 1 for group in groups)
    # At the reference every pair's loss is log 2.
    learnt = learn(trainer, experience, 0)
    assert learnt["loss"] == pytest.approx(math.log(2), rel=1e-5)
    better = [b > 0.5 for b in experience.preference.tolist()]
    after, _ = trainer.policy_logprobs(experience.batch)
    moved = (after - experience.logprobs).sum(dim=-1)
    gaps = [float(moved[i] - moved[i + 1]) * (1 if better[i] else -1) for i in range(0, len(better), 2)]
    assert sum(gaps) > 0


def test_sampled_labels_come_back_for_the_same_pair(tmp_path: Path) -> None:
    trainer = online_dpo_trainer(tmp_path / "dpo", labels="sampled")
    one, other = trainer.collect(2)[0], trainer.collect(2)[0]
    assert torch.equal(one.preference, other.preference)
    assert set(one.preference.tolist()) == {0.0, 1.0}


def test_the_best_of_each_group_is_learned(tmp_path: Path) -> None:
    trainer, recorder = rejection_trainer(tmp_path / "rejection", rounds=2), StopAfter()
    scored = trainer.collector.draw(range(len(PROMPTS)), 0)
    trainer.train(Checkpoints(tmp_path / "scratch", 1e9), recorder)
    kept = trainer.rounds[0].rows
    assert len(kept) == len(PROMPTS) == 24
    for place, row in enumerate(kept):
        own = scored.scores[3 * place : 3 * place + 3].tolist()
        best = 3 * place + own.index(max(own))
        assert row.completion_ids == scored.rollouts.completion_ids[best]
        assert row.trainable == [False] * len(row.prompt_ids) + [True] * len(row.completion_ids)
    figures = [trainer.rounds[number].figures for number in (0, 1)]
    assert figures[0]["best_score"] == pytest.approx(float(scored.scores.view(-1, 3).amax(1).mean()))
    assert [row["kl_bound"] for row in figures] == [kl_bound(3), kl_bound(9)]
    # 24 rows in batches of 8, two rounds; each says what it sampled in its first step.
    assert [("best_score" in row) for row in recorder.rows] == [True, False, False] * 2
    assert trainer.rounds[0].rows != trainer.rounds[1].rows


def test_a_resumed_round_learns_what_it_sampled_at_its_beginning(tmp_path: Path) -> None:
    with pytest.raises(StopRequested):
        rejection_trainer(tmp_path / "a").train(Checkpoints(tmp_path / "scratch", 1e9), StopAfter(5))
    resumed = rejection_trainer(tmp_path / "a")
    resumed.train(Checkpoints(tmp_path / "scratch", 1e9), StopAfter())
    whole = rejection_trainer(tmp_path / "a")
    whole.train(Checkpoints(tmp_path / "whole", 1e9), StopAfter())
    assert resumed.rounds == whole.rounds


def test_training_on_its_best_raises_the_score(tmp_path: Path) -> None:
    class Short:
        def score(self, prompts: Any, completions: Any, ended: Any) -> Tensor:
            return torch.tensor([-float(len(text)) for text in completions])

    trainer = rejection_trainer(tmp_path / "a", rounds=3, group_size=6, learning_rate=2e-2, epochs=2)
    trainer.collector.rewards = RewardSum({"short": (1.0, Short())})
    trainer.train(Checkpoints(tmp_path / "scratch", 1e9), StopAfter())
    scores = [trainer.rounds[number].figures["score"] for number in range(3)]
    assert scores[0] < scores[1] < scores[2]


class Lowercase:
    """The share of small letters."""

    def score(self, prompts: Any, completions: Any, ended: Any) -> Tensor:
        return torch.tensor([sum("a" <= c <= "z" for c in x) / max(len(x), 1) for x in completions])


@pytest.mark.parametrize("method", ["grpo", "rloo", "reinforce"])
def test_a_group_method_climbs_its_reward(method: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 10, "batch_size": 32, "learning_rate": 0.1, "warmup_ratio": 0.0}
    rewards = RewardSum({"rule": (1.0, Lowercase())})
    trainer = group_trainer(method, tmp_path / method, rewards=rewards, kl_coef=0.0, select_kl=0.0, **options)
    recorder = StopAfter()
    trainer.train(Checkpoints(tmp_path / "scratch", 1e9), recorder)
    scores = [row["score"] for row in recorder.rows]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.2


def test_prompts_and_demonstrations_that_are_missing_are_named(tmp_path: Path) -> None:
    trainer = online_dpo_trainer(tmp_path / "dpo")
    given: dict[str, Any] = {
        "policy": trainer.policy,
        "reference": trainer.reference,
        "tokenizer": trainer.tokenizer,
        "rewards": trainer.collector.rewards,
        "seed": 0,
    }
    config = OnlineDPOConfig(steps=1, ptx_coef=0.1)
    with pytest.raises(DataError, match=r"online_dpo\.ptx_coef is above 0"):
        OnlineDPOTrainer(prompts=PROMPTS, config=config, **given)
    with pytest.raises(DataError, match="online_dpo has no prompt to sample from"):
        OnlineDPOTrainer(prompts=[], config=OnlineDPOConfig(steps=1), **given)
    with pytest.raises(DataError, match="rejection has no prompt to sample from"):
        RejectionTrainer(trainer.policy, trainer.tokenizer, CONSTANT, [], RejectionConfig(), seed=0)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (GRPOConfig, {"group_size": 1}, "group_size must be at least 2"),
        (GRPOConfig, {"group_size": 5}, "batch_size 32 is no multiple of group_size 5"),
        (GRPOConfig, {"minibatches": 5}, "batch_size 32 is no multiple of minibatches 5"),
        (GRPOConfig, {"resample_limit": 2}, "dynamic_sampling is off"),
        (GRPOConfig, {"scale_rewards": "groups"}, "scale_rewards is 'groups'"),
        (GRPOConfig, {"overlong_penalty": 1, "overlong_tokens": 99}, "overlong_tokens 99 is more than"),
        (GRPOConfig, {"clip_range_low": 1.5}, "clip_range_low must lie between"),
        (RLOOConfig, {"group_size": 1}, "group_size must be at least 2"),
        (RLOOConfig, {"lora": {"dropout": 0.1}}, "lora.dropout must be 0"),
        (ReinforceConfig, {"dynamic_sampling": True}, "needs a group_size above 1"),
        (ReinforceConfig, {"kl_control": "adaptive", "kl_coef": 0}, "kl_coef, which must be more than 0"),
        (PPOConfig, {"dual_clip": 0.5}, "dual_clip must be more than 1"),
        (PPOConfig, {"kl_final": -1}, "kl_final must be at least 0"),
        (PPOConfig, {"minibatches": 3}, "batch_size 32 is no multiple of minibatches 3"),
        (OnlineDPOConfig, {"beta": 0}, "beta must be more than 0"),
        (OnlineDPOConfig, {"sampling": {"top_p": 0.9}}, "sampling.top_p must be 1"),
        (RejectionConfig, {"rounds": 0}, "rounds must be at least 1"),
        (RejectionConfig, {"sampling": {"temperature": 0}}, "sampling.temperature must be more than 0"),
    ],
)
def test_impossible_settings_are_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(cls, {"steps": 1, **values}, "section")


def test_rejection_may_sample_from_a_nucleus() -> None:
    assert RejectionConfig(sampling=SamplingConfig(top_p=0.9)).sampling.top_p == 0.9
