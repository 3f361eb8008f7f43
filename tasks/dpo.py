"""The stage dpo: the SFT policy learns from comparisons without a reward model."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.dpo import DPOConfig
from prefloop.models.adapters import attach
from prefloop.training.dpo import fit_dpo, held_out_figures
from prefloop.training.reference import reference_logprobs, weights_hash
from tasks.support.direct_fitting import comparisons, finish, start, watched
from tasks.support.policy_stage import open_policy

COMPARISONS = Path("data/validated/preferences.jsonl")


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("dpo", DPOConfig) as stage:
        begun = start(stage, [COMPARISONS], "models/sft")
        model, tokenizer, config, precision = begun.model, begun.tokenizer, begun.config, begun.precision
        rows = comparisons(stage, begun)
        # Before any step the policy is the reference.
        weights = weights_hash(model)
        reference, held_reference = (
            reference_logprobs(model, tokenizer, part, precision, begun.cache, weights=weights)
            for part in (rows.fitted, rows.held)
        )
        policy = attach(model, config.lora, seed=stage.seed)
        looks = watched(stage, begun, policy)
        outcome = fit_dpo(policy, tokenizer, rows.fitted, reference, config, **begun.watched_by(looks))
        figures = held_out_figures(policy, tokenizer, rows.held, held_reference, config, precision)
        what = "The SFT policy, tuned by DPO."
        found = {**rows.counts, "held_out": figures, **outcome}
        finish(stage, policy, tokenizer, what, rows.about, found, looks)


if __name__ == "__main__":
    main()
