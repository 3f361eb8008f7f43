"""Sampling for evaluation: equal noise for every policy, and log-probs summed by another route."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prefloop.config.base import ArchitectureConfig
from prefloop.config.compute import ComputeConfig
from prefloop.config.evaluate import EvaluateConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.errors import DataError, ModelError
from prefloop.evaluation.answering import Setting, completion_logprobs, sample_many, sample_policies
from prefloop.evaluation.answers import EvaluationPrompt
from prefloop.evaluation.judges import Judges
from prefloop.files import write_json
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.models.reward_model import RewardModel
from prefloop.models.saving import save_model
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.training.environment import resolve
from prefloop.world.build import evaluation
from prefloop.world.facts import World

TEXTS = ["What colour is the kettle?", "The kettle is blue.", "I cannot help with that."]
THINGS = ("kettle", "lamp", "oven", "fan")
ASKED = [EvaluationPrompt(thing, f"What colour is the {thing}?", "question") for thing in THINGS]
SETTING = Setting(
    EvaluateConfig(sampling=SamplingConfig(max_new_tokens=6, temperature=0.7), batch_size=3),
    resolve(ComputeConfig(device="cpu", precision="fp32", threads=1)),
    seed=4,
)


def save_policy(folder: Path, seed: int, texts: list[str] = TEXTS) -> None:
    tokens = train_tokenizer(texts * 4, 300, 64)
    shape = ArchitectureConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, layers=1, heads=2, kv_heads=2, context=64
    )
    save_model(create_model(shape, tokens, seed), tokens, folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    for seed, name in enumerate(("sft", "dpo")):
        save_policy(folder / name, seed)
    RewardModel.create(folder / "sft", seed=0).save(folder / "reward")
    (folder / "judge").mkdir()
    write_json(folder / "judge" / "judge.json", {"kind": "gold"})
    return folder


def test_log_probs_agree_with_a_plain_forward_pass_a_row(models):
    model, tokenizer = SETTING.load(models / "dpo")
    rollouts = sample_policies("dpo", models, ASKED, SETTING)[0].rollouts
    expected = []
    for prompt, completion in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0] / 0.7
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        expected.append(
            sum(float(logprobs[len(prompt) - 1 + t, token]) for t, token in enumerate(completion))
        )
    assert completion_logprobs(model, tokenizer, rollouts, SETTING) == pytest.approx(expected, abs=1e-4)


def test_the_log_ratio_is_policy_less_sft(models):
    ours, _ = sample_policies("dpo", models, ASKED, SETTING)
    terms = [
        completion_logprobs(*SETTING.load(models / name), ours.rollouts, SETTING) for name in ("dpo", "sft")
    ]
    assert ours.log_ratio == pytest.approx(terms[0] - terms[1])
    assert np.abs(ours.log_ratio).max() > 0


def test_sft_against_itself_is_one_set_of_answers_at_no_distance(models):
    ours, baseline = sample_policies("sft", models, ASKED, SETTING)
    assert ours is baseline
    assert (ours.log_ratio == 0).all()


def test_a_prompts_answer_depends_on_its_id_and_on_no_other_prompt(models):
    everyone = sample_policies("sft", models, ASKED, SETTING)[0].rollouts.texts
    backwards = sample_policies("sft", models, ASKED[::-1], SETTING)[0].rollouts.texts
    assert backwards[::-1] == everyone
    assert sample_policies("dpo", models, ASKED, SETTING)[1].rollouts.texts == everyone


def test_oracle_samples_are_those_of_each_round_alone_and_report_progress(models):
    heard: list[tuple[int, int]] = []
    rounds = sample_many(models / "sft", ASKED, 3, SETTING, lambda done, total: heard.append((done, total)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]  # three answers at once are one prompt's
    assert len({tuple(r.texts) for r in rounds}) == 3
    wide = replace(SETTING, config=replace(SETTING.config, batch_size=64))
    assert [r.texts for r in sample_many(models / "sft", ASKED, 3, wide, lambda *_: None)] == [
        r.texts for r in rounds
    ]
    alone = Sampler(*SETTING.load(models / "sft"), SETTING.config.sampling)
    for number, own in enumerate(rounds):
        keys = [(prompt.id, number) for prompt in ASKED]
        expected = alone.sample([prompt.prompt for prompt in ASKED], (SETTING.seed, "oracle"), keys)
        assert own.completion_ids == expected.completion_ids


def test_policies_of_other_vocabularies_have_no_kl(models, tmp_path):
    (tmp_path / "sft").symlink_to(models / "sft")
    save_policy(tmp_path / "other", 0, ["wholly zzz other qqq words vvv here xxx"])
    with pytest.raises(ModelError, match="differ in vocabulary"):
        sample_policies("other", tmp_path, ASKED, SETTING)


def test_gold_refuses_prompts_that_are_not_of_its_world(models):
    with pytest.raises(DataError, match="gold cannot judge evaluation prompt 'kettle'"):
        Judges.load(models, ASKED, SETTING)


def test_every_judge_scores_the_answers_in_order(models):
    rows = list(evaluation(World.make(SETTING.seed), 4, 2, SETTING.seed))
    prompts = [EvaluationPrompt.from_row(row) for row in rows]
    judges = Judges.load(models, prompts, SETTING)
    sampled = sample_policies("sft", models, prompts, SETTING)[0]
    answers = judges.scored(sampled, prompts)
    assert answers.judge_name == "gold"
    assert answers.gold is not None
    assert (answers.judge == answers.gold).all()
    alone = RewardModel.load(models / "reward")
    asked = [alone.score([p.prompt], [t])[0].item() for p, t in zip(prompts, answers.texts, strict=True)]
    assert answers.reward == pytest.approx(asked, abs=1e-5)
    assert [row["panel"] for row in answers.rows()].count("harmful") == 2


def test_a_reward_model_judges_where_there_is_no_gold(models, tmp_path):
    for name in ("sft", "reward"):
        (tmp_path / name).symlink_to(models / name)
    RewardModel.create(models / "sft", seed=9).save(tmp_path / "judge")
    write_json(tmp_path / "judge" / "judge.json", {"kind": "reward_model"})
    sampled = sample_policies("sft", tmp_path, ASKED, SETTING)[0]
    answers = Judges.load(tmp_path, ASKED, SETTING).scored(sampled, ASKED)
    assert (answers.judge_name, answers.gold, answers.refused) == ("reward_model", None, None)
    assert not np.allclose(answers.judge, answers.reward)


def test_an_empty_completion_has_log_prob_0(models):
    model, tokenizer = SETTING.load(models / "sft")
    rollouts = Rollouts([[5, 6]], [[]], [""], [False])
    assert completion_logprobs(model, tokenizer, rollouts, SETTING).tolist() == [0.0]
