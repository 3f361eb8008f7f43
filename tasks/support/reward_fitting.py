"""What the stages reward and judge share: fitting a reward model to comparisons and measuring it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config.reward import RewardConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.data.comparisons import rankings
from prefloop.data.holdout import split_holdout
from prefloop.errors import DataError
from prefloop.evaluation.reward_accuracy import summarise
from prefloop.files import read_jsonl
from prefloop.models.adapters import attach, merge
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.rollout.sampling import Sampler
from prefloop.training.noise import permutation
from prefloop.training.reward import encode_rankings, fit_reward_model, normalise, raw_scores
from tasks.support.stage import Stage
from tasks.support.training import prepare


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
    trunk = f"models/{config.base}" if config.base in ("sft", "base") else config.base
    model = RewardModel.create(
        trunk,
        seed=stage.seed,
        device=environment.device,
        precision=environment.precision,
        revision=config.revision,
        trust_remote_code=bench.trust_remote_code,
    )
    model.model = attach(model.model, config.lora, seed=stage.seed, task="SEQ_CLS")
    encoded = encode_rankings(model, fitted, config.max_length)
    stage.say(
        f"{len(fitted):,} prompts with comparisons, {len(held):,} held out, "
        f"{unused + held_unused:,} without an order"
    )
    fit_reward_model(
        model,
        encoded,
        config,
        seed=stage.seed,
        checkpoints=bench.checkpoints,
        recorder=stage.recorder,
        what=stage.name,
    )
    model.model = merge(model.model)
    model.eval()
    figures = summarise(
        fitted,
        held,
        raw_scores(model, encode_rankings(model, held, config.max_length)),
        resamples=config.bootstrap,
    )
    mean, std = _normalise(stage, model, prompts, policy, environment.device, environment.precision)
    return model, {
        "prompts": len(fitted),
        "pairs": sum(len(ranking.pairs) for ranking in fitted),
        "unused": unused + held_unused,
        **figures,
        "normalisation": {"mean": mean, "std": std},
    }


def _normalise(
    stage: Stage[Any], model: RewardModel, prompts: Path, policy: Path, device: str, precision: str
) -> tuple[float, float]:
    rows = list(read_jsonl(prompts))
    chosen = permutation((stage.seed, stage.name, "normalise"), len(rows))[: stage.config.normalise_prompts]
    asked = [rows[i]["prompt"] for i in sorted(chosen)]
    sampler = Sampler(
        *load_policy(policy, device=device), SamplingConfig(max_new_tokens=_answer_room(stage)), precision
    )
    rollouts = sampler.sample(asked, (stage.seed, stage.name, "normalise"))
    return normalise(model, asked, rollouts.texts)


def _answer_room(stage: Stage[Any]) -> int:
    """Tokens an answer may take here: half of what the reward model reads."""
    return max(int(stage.config.max_length) // 2, 1)
