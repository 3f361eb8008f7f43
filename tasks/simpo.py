"""The stage simpo: the SFT policy learns from comparisons without a reward model or a reference."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.simpo import SimPOConfig
from prefloop.models.adapters import attach
from prefloop.training.direct import comparison_figures, fit_comparisons
from prefloop.training.simpo import simpo_part
from tasks.support.direct_fitting import comparisons, finish, start, watched
from tasks.support.policy_stage import open_policy

COMPARISONS = Path("data/validated/preferences.jsonl")


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("simpo", SimPOConfig) as stage:
        begun = start(stage, [COMPARISONS], "models/sft")
        tokenizer, config = begun.tokenizer, begun.config
        rows = comparisons(stage, begun)
        policy = attach(begun.model, config.lora, seed=stage.seed)
        looks = watched(stage, begun, policy)
        part = simpo_part(config)
        run = begun.watched_by(looks)
        outcome = fit_comparisons(policy, tokenizer, rows.fitted, part, config, "simpo", **run)
        figures = comparison_figures(policy, tokenizer, rows.held, part, begun.precision)
        what = "The SFT policy, tuned by SimPO."
        found = {**rows.counts, "held_out": figures, **outcome}
        finish(stage, policy, tokenizer, what, rows.about, found, looks)


if __name__ == "__main__":
    main()
