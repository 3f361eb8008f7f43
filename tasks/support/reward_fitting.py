"""What the stages reward and judge share: fitting a reward model to comparisons and measuring it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config.reward import RewardConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.data.comparisons import Ranking, rankings
from prefloop.data.holdout import split_holdout
from prefloop.errors import DataError
from prefloop.evaluation.reward_accuracy import summarise
from prefloop.files import read_jsonl
from prefloop.models.adapters import attach
from prefloop.models.hub import resolve_revision
from prefloop.models.loading import context_length, load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.rollout.sampling import Sampler
from prefloop.training.noise import permutation
from prefloop.training.reward import encode_rankings, raw_scores
from prefloop.training.reward_ensemble import fit_ensemble
from prefloop.training.reward_normalisation import normalise
from tasks.support.stage import Stage
from tasks.support.training import Workbench, prepare


def fit(
    stage: Stage[Any], comparisons: Path, prompts: Path, policy: Path
) -> tuple[RewardModel, dict[str, Any]]:
    """Fits a reward model as the stage's section says.

    Args:
        comparisons: rows to fit. prompts: rows whose answers by `policy` give mean 0 and std 1.

    Returns:
        The model and its figures on held-out prompts.
    """
    config: RewardConfig = stage.config
    bench = prepare(stage)
    environment = bench.environment
    stage.dataset("preferences", comparisons)
    rows, held_rows = split_holdout(list(read_jsonl(comparisons)), config.holdout, "reward")
    (fitted, unused), (held, held_unused) = rankings(rows), rankings(held_rows)
    if not fitted:
        raise DataError(
            f"{comparisons} orders no completions", "import comparisons: prefloop data import --help"
        )
    trunk, revision = f"models/{config.base}", None
    if config.base not in ("sft", "base"):
        trunk, revision = config.base, resolve_revision(config.base, config.revision)
    heads = config.ensemble.members if config.ensemble.share_trunk else 1

    def make(member: int) -> RewardModel:
        model = RewardModel.create(
            trunk,
            seed=stage.seed,
            device=environment.device,
            precision=environment.precision,
            revision=revision,
            trust_remote_code=bench.trust_remote_code,
            member=member,
            heads=heads,
        )
        model.model = attach(model.model, config.lora, seed=stage.seed, task="SEQ_CLS")
        return model

    stage.say(
        f"{len(fitted):,} prompts with comparisons, {len(held):,} held out, "
        f"{unused + held_unused:,} without an order"
    )
    model, outcome = fit_ensemble(
        make,
        fitted,
        config,
        seed=stage.seed,
        checkpoints=bench.checkpoints,
        recorder=stage.recorder,
        what=stage.name,
    )
    slope = _normalise(stage, bench, model, prompts, policy)
    return model, {
        "prompts": len(fitted),
        "pairs": sum(len(ranking.pairs) for ranking in fitted),
        "unused": unused + held_unused,
        **_held_out(model, fitted, held, config),
        "normalisation": {"mean": model.normalisation.mean, "std": model.normalisation.std},
        "length_slope": slope,
        **outcome,
    }


def _held_out(
    model: RewardModel, fitted: list[Ranking], held: list[Ranking], config: RewardConfig
) -> dict[str, Any]:
    raw = raw_scores(model, encode_rankings(model, held, config.max_length))
    scale = model.normalisation
    lengths = [[model.completion_tokens(c) for c in ranking.completions] for ranking in held]
    scores = [scale.apply(own, tokens).tolist() for own, tokens in zip(raw, lengths, strict=True)]
    members: list[list[list[float]]] = []
    if model.members > 1:
        each = [scale.standardise(own) for own in raw]
        members = [[own[:, number].tolist() for own in each] for number in range(model.members)]
    return summarise(
        fitted,
        held,
        scores,
        resamples=config.bootstrap,
        log_odds=[own.mean(dim=1).tolist() for own in raw],
        members=members,
    )


def _normalise(stage: Stage[Any], bench: Workbench, model: RewardModel, prompts: Path, policy: Path) -> float:
    rows = list(read_jsonl(prompts))
    if not rows:
        raise DataError(
            f"{prompts} is empty: the reward model has no answers to take its mean and spread from",
            "import prompts, or raise ingest.rl_share",
        )
    chosen = permutation((stage.seed, stage.name, "normalise"), len(rows))[: stage.config.normalise_prompts]
    asked = [rows[i]["prompt"] for i in sorted(chosen)]
    answering, tokenizer = load_policy(
        policy, device=bench.environment.device, trust_remote_code=bench.trust_remote_code
    )
    # An answer may take half of what the two models read.
    room = max(min(int(stage.config.max_length), context_length(answering)) // 2, 1)
    sampler = Sampler(answering, tokenizer, SamplingConfig(max_new_tokens=room), bench.environment.precision)
    rollouts = sampler.sample(asked, (stage.seed, stage.name, "normalise"))
    return normalise(model, asked, rollouts.texts, stage.config)
