"""Ensembles and length control: what is aggregated, saved, loaded and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefloop.config.ppo import PPOConfig
from prefloop.config.reward import EnsembleConfig, RewardConfig
from prefloop.data.batching import Batch
from prefloop.errors import ModelError, TrainingError
from prefloop.models.classifiers import score_head
from prefloop.models.critic import make_critic
from prefloop.models.reward_model import RewardModel
from prefloop.models.reward_normalisation import Normalisation, aggregate_members, slope_on
from prefloop.training.reward_normalisation import normalise
from tests import tiny

PROMPTS = tiny.QUESTIONS
COMPLETIONS = [*tiny.ANSWERS, "Red.", "A lamp."]
NORMALISATION = "reward_normalisation.json"


def ensemble(folder: Path, shared: bool, members: int = 3) -> RewardModel:
    """A model of several members, untrained."""
    trunk = tiny.saved(folder / "trunk")
    if shared:
        return RewardModel.create(trunk, seed=0, heads=members).eval()
    each = [RewardModel.create(trunk, seed=0, member=m) for m in range(members)]
    return RewardModel(each[0].model, each[0].tokenizer, others=[m.model for m in each[1:]]).eval()


def config(aggregate: str = "mean", **changes: object) -> RewardConfig:
    return RewardConfig(
        ensemble=EnsembleConfig(members=3, aggregate=aggregate, uwo_coef=2.0),  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )


def test_aggregates_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 0.0]])
    assert aggregate_members(scores, "mean", 0.5).tolist() == [3.0, 0.0]
    assert aggregate_members(scores, "worst", 0.5).tolist() == [1.0, 0.0]
    # The variance is (4 + 1 + 9) / 3.
    assert aggregate_members(scores, "uwo", 0.5).tolist() == pytest.approx([3 - 0.5 * 14 / 3, 0.0])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=5))
def test_one_opinion_is_every_aggregate(values: list[float]) -> None:
    alike = torch.tensor(values, dtype=torch.float64)[:, None].repeat(1, 3)
    for how in ("mean", "worst", "uwo"):
        torch.testing.assert_close(aggregate_members(alike, how, 0.7), alike[:, 0])
        torch.testing.assert_close(aggregate_members(alike[:, :1], how, 0.7), alike[:, 0])


def test_a_score_by_hand() -> None:
    scale = Normalisation(
        mean=0.5,
        std=2.0,
        members=((1.0, 2.0), (0.0, 4.0)),
        aggregate="worst",
        slope=0.1,
        mean_tokens=10.0,
        penalty=0.01,
    )
    # Members: (5 - 1) / 2 = 2 and 4 / 4 = 1; the worst is 1; (1 - 0.5) / 2 = 0.25; 20 tokens cost 1 + 0.2.
    assert scale.apply(torch.tensor([[5.0, 4.0]]), [20]).item() == pytest.approx(0.25 - 1.0 - 0.2)


def test_the_slope_is_that_of_least_squares() -> None:
    # By hand: lengths 1, 2, 6 are -2, -1, 3 about their mean; (-2 * 1 - 1 * 0 + 3 * 5) / 14.
    assert slope_on([1, 2, 6], torch.tensor([1.0, 0.0, 5.0])) == pytest.approx(13 / 14)
    assert slope_on([3, 3, 3], torch.tensor([1.0, 0.0, 5.0])) == 0


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("aggregate", ["mean", "worst", "uwo"])
def test_scores_on_sft_samples_have_mean_0_and_std_1(shared: bool, aggregate: str, tmp_path: Path) -> None:
    model = ensemble(tmp_path, shared)
    raw = model.raw(PROMPTS, COMPLETIONS).double()
    assert raw.shape == (6, 3)
    normalise(model, PROMPTS, COMPLETIONS, config(aggregate))
    scores = model.score(PROMPTS, COMPLETIONS)
    assert scores.shape == (6,)
    assert scores.mean().item() == pytest.approx(0, abs=1e-6)
    assert scores.std().item() == pytest.approx(1, rel=1e-5)
    # Once more by other means: each member on its own scale, aggregated, on a scale of its own.
    members = (raw - raw.mean(dim=0)) / raw.std(dim=0)
    torch.testing.assert_close(
        model.member_scores(PROMPTS, COMPLETIONS).double(), members, atol=1e-4, rtol=1e-4
    )
    combined = {
        "mean": members.sum(dim=1) / 3,
        "worst": torch.stack([row.sort().values[0] for row in members]),
        "uwo": members.sum(dim=1) / 3 - 2.0 * ((members**2).sum(dim=1) / 3 - (members.sum(dim=1) / 3) ** 2),
    }[aggregate]
    expected = (combined - combined.mean()) / combined.std()
    torch.testing.assert_close(scores.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_members_differ_and_the_first_is_the_single_model(shared: bool, tmp_path: Path) -> None:
    model = ensemble(tmp_path, shared)
    raw = model.raw(PROMPTS, COMPLETIONS)
    single = RewardModel.create(tmp_path / "trunk", seed=0).eval().raw(PROMPTS, COMPLETIONS)
    torch.testing.assert_close(raw[:, :1], single)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(raw[:, one], raw[:, other], atol=1e-2)
    # A member draws the same head on a trunk of its own and on a shared one.
    heads = [score_head(m).weight for m in (model.model, *model.others)]  # type: ignore[arg-type]
    alone = score_head(RewardModel.create(tmp_path / "trunk", seed=0, member=2).model).weight
    assert torch.equal(torch.cat(heads)[2:], alone)


def plain_scores(folder: Path, model: RewardModel) -> Tensor:
    """Raw scores by transformers alone, one conversation at a time."""
    loaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)
    rows = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        ids = tokens.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert ids == model.encode(prompt, completion)
        with torch.no_grad():
            rows.append(loaded(torch.tensor([ids])).logits[0])
    return torch.stack(rows)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_a_saved_ensemble_is_the_same_and_loads_with_transformers_alone(shared: bool, tmp_path: Path) -> None:
    model = ensemble(tmp_path, shared)
    normalise(model, PROMPTS, COMPLETIONS, config("uwo", length_control="regress"))
    model.save(tmp_path / "reward", {"What it is": "a test"})
    again = RewardModel.load(tmp_path / "reward")
    assert again.normalisation == model.normalisation
    assert again.members == 3
    # A product may round by where in memory its matrices lie.
    torch.testing.assert_close(
        again.score(PROMPTS, COMPLETIONS), model.score(PROMPTS, COMPLETIONS), atol=1e-6, rtol=1e-5
    )
    folders = [tmp_path / "reward"]
    if not shared:
        folders += [tmp_path / "reward" / f"member-{m}" for m in (1, 2)]
    raw = torch.cat([plain_scores(folder, model) for folder in folders], dim=1)
    torch.testing.assert_close(raw, model.raw(PROMPTS, COMPLETIONS), atol=1e-6, rtol=1e-5)
    assert (tmp_path / "reward" / "README.md").read_text().startswith("---\nlibrary_name: transformers")
    if not shared:
        # A member's folder is a reward model, too.
        alone = RewardModel.load(tmp_path / "reward" / "member-1").score(PROMPTS, COMPLETIONS)
        torch.testing.assert_close(alone, model.member_scores(PROMPTS, COMPLETIONS)[:, 1])


def test_an_ensemble_with_a_member_missing_is_refused(tmp_path: Path) -> None:
    ensemble(tmp_path, shared=False).save(tmp_path / "reward")
    for file in (tmp_path / "reward" / "member-2").iterdir():
        file.unlink()
    (tmp_path / "reward" / "member-2").rmdir()
    with pytest.raises(ModelError, match="an ensemble of 3 whose member-2 is missing"):
        RewardModel.load(tmp_path / "reward")


def test_a_normalisation_of_other_members_is_refused(tmp_path: Path) -> None:
    ensemble(tmp_path, shared=True).save(tmp_path / "reward")
    values = json.loads((tmp_path / "reward" / NORMALISATION).read_text())
    values["members"] = values["members"][:2]
    (tmp_path / "reward" / NORMALISATION).write_text(json.dumps(values))
    with pytest.raises(ModelError, match="has 3 scores"):
        RewardModel.load(tmp_path / "reward")


@pytest.mark.parametrize(
    "values",
    [
        {"mean": 0.0},
        {"mean": "a", "std": 1.0},
        {"mean": 0.0, "std": 1.0, "aggregate": "best"},
        {"mean": 0.0, "std": 1.0, "members": [{"mean": 0.0}]},
        {"mean": 0.0, "std": 1.0, "length": {"slop": 1.0}},
    ],
)
def test_a_damaged_normalisation_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="the file holds no normalisation"):
        Normalisation.from_json(values, "the file")


def test_members_that_do_not_vary_or_cancel_out_are_refused(tmp_path: Path) -> None:
    model = ensemble(tmp_path, shared=True, members=2)
    head = score_head(model.model)
    with torch.no_grad():
        head.weight[1] = -head.weight[0]
    with pytest.raises(TrainingError, match="the reward model gives every completion the same score"):
        normalise(model, PROMPTS, COMPLETIONS, config())
    with torch.no_grad():
        head.weight[1] = 0.0
    with pytest.raises(TrainingError, match="member 1 gives every completion the same score"):
        normalise(model, PROMPTS, COMPLETIONS, config())


def test_a_member_that_gives_no_number_is_refused(tmp_path: Path) -> None:
    model = ensemble(tmp_path, shared=False)
    with torch.no_grad():
        score_head(model.others[1]).weight[0, 0] = torch.nan  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="NaN or infinite"):
        normalise(model, PROMPTS, COMPLETIONS, config())
    with pytest.raises(ModelError, match="NaN or infinite"):
        model.score(PROMPTS, COMPLETIONS)


def test_regression_takes_out_what_length_explains(tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0).eval()
    slope = normalise(model, PROMPTS, COMPLETIONS, RewardConfig())
    plain = model.score(PROMPTS, COMPLETIONS)
    lengths = [len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in COMPLETIONS]
    centred = torch.tensor(lengths) - sum(lengths) / 6
    assert len(set(lengths)) > 2
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(float((plain * centred).sum() / (centred**2).sum()), rel=1e-4)
    # The slope before control is what is reported, with or without it.
    assert normalise(model, PROMPTS, COMPLETIONS, RewardConfig(length_control="regress")) == slope
    model.save(tmp_path / "reward")
    freed = RewardModel.load(tmp_path / "reward").score(PROMPTS, COMPLETIONS)
    torch.testing.assert_close(freed, plain - slope * centred, atol=1e-5, rtol=1e-5)
    assert slope_on(lengths, freed) == pytest.approx(0, abs=1e-6)
    assert freed.mean().item() == pytest.approx(0, abs=1e-5)


def test_a_penalty_is_taken_a_token(tmp_path: Path) -> None:
    model = RewardModel.create(tiny.saved(tmp_path / "trunk"), seed=0).eval()
    normalise(model, PROMPTS, COMPLETIONS, RewardConfig())
    plain = model.score(PROMPTS, COMPLETIONS)
    normalise(model, PROMPTS, COMPLETIONS, RewardConfig(length_control="penalty", length_penalty=0.25))
    model.save(tmp_path / "reward")
    lengths = torch.tensor([model.completion_tokens(text) for text in COMPLETIONS])
    found = RewardModel.load(tmp_path / "reward").score(PROMPTS, COMPLETIONS)
    torch.testing.assert_close(found, plain - 0.25 * lengths)
    # A completion given as messages is as long as its words.
    said = [{"role": "assistant", "content": COMPLETIONS[0]}]
    assert model.completion_tokens(said) == lengths[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length_control": "penalty"}, "needs both"),
        ({"length_penalty": 0.1}, "needs both"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0"),
    ],
)
def test_a_penalty_without_its_size_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"members": 0}, {"uwo_coef": -1.0}])
def test_an_impossible_ensemble_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        EnsembleConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_a_critic_starts_from_the_first_members_trunk(shared: bool, tmp_path: Path) -> None:
    model = ensemble(tmp_path, shared)
    tokens = tiny.tokenizer()
    critic = make_critic(PPOConfig(steps=1), tiny.model(tokens, seed=5), model, tokens)
    assert critic.trunk is not None
    own = dict(critic.trunk.named_parameters())
    for name, parameter in model.model.named_parameters():
        assert torch.equal(own[name], parameter)
    real, wanted = torch.tensor([[True, True, True]]), torch.tensor([[False, True, True]])
    critic(Batch(torch.tensor([[7, 8, 9]]), real, wanted)).sum().backward()
    assert all(p.grad is None for n, p in own.items() if n.startswith("score"))
