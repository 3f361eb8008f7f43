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
from prefloop.models.hub import resolve_revision
from prefloop.models.loading import context_length, load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.rollout.sampling import Sampler
from prefloop.training.noise import permutation
from prefloop.training.reward import encode_rankings, fit_reward_model, normalise, raw_scores
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
    model = RewardModel.create(
        trunk,
        seed=stage.seed,
        device=environment.device,
        precision=environment.precision,
        revision=revision,
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
    mean, std = _normalise(stage, bench, model, prompts, policy)
    return model, {
        "prompts": len(fitted),
        "pairs": sum(len(ranking.pairs) for ranking in fitted),
        "unused": unused + held_unused,
        **figures,
        "normalisation": {"mean": mean, "std": std},
    }


def _normalise(
    stage: Stage[Any], bench: Workbench, model: RewardModel, prompts: Path, policy: Path
) -> tuple[float, float]:
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
    return normalise(model, asked, rollouts.texts)
