"""The stage orpo: a model learns to answer and what raters prefer in one go, from comparisons alone."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.orpo import ORPOConfig
from prefloop.models.adapters import attach
from prefloop.training.direct import comparison_figures, fit_comparisons
from prefloop.training.orpo import orpo_part
from tasks.support.direct_fitting import comparisons, finish, start, watched
from tasks.support.policy_stage import open_policy

COMPARISONS = Path("data/validated/preferences.jsonl")


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("orpo", ORPOConfig) as stage:
        begun = start(stage, [COMPARISONS], f"models/{stage.config.start}")
        tokenizer, config = begun.tokenizer, begun.config
        rows = comparisons(stage, begun)
        policy = attach(begun.model, config.lora, seed=stage.seed)
        looks = watched(stage, begun, policy)
        part = orpo_part(config)
        run = begun.watched_by(looks)
        outcome = fit_comparisons(policy, tokenizer, rows.fitted, part, config, "orpo", **run)
        figures = comparison_figures(policy, tokenizer, rows.held, part, begun.precision)
        what = f"The {'SFT policy' if config.start == 'sft' else 'base model'}, tuned by ORPO."
        found = {**rows.counts, "held_out": figures, **outcome}
        finish(stage, policy, tokenizer, what, rows.about, found, looks)


if __name__ == "__main__":
    main()
