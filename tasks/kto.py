"""The stage kto: the SFT policy learns from completions that are marked desirable or not."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.kto import KTOConfig
from prefloop.data.unpaired import balance_advice, unpaired, weight_ratio
from prefloop.models.adapters import attach
from prefloop.training.kto import (
    encode_unpaired,
    fit_kto,
    held_out_figures,
    held_out_step,
    kto_reference,
    training_steps,
)
from prefloop.training.reference import weights_hash
from tasks.support.direct_fitting import cut_figures, finish, said, start, watched
from tasks.support.policy_stage import open_policy

COMPARISONS, LABELS = Path("data/validated/preferences.jsonl"), Path("data/validated/unpaired.jsonl")
FILES = {"comparisons": [COMPARISONS], "labels": [LABELS], "auto": [COMPARISONS, LABELS]}


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("kto", KTOConfig) as stage:
        begun = start(stage, FILES[stage.config.data], "models/sft")
        model, tokenizer, config, precision = begun.model, begun.tokenizer, begun.config, begun.precision
        (marked, unused), (held_marked, _) = unpaired(begun.rows), unpaired(begun.held)
        rows, cut = encode_unpaired(marked, tokenizer, config)
        held, _ = encode_unpaired(held_marked, tokenizer, config, strict=False)
        steps = training_steps(rows, config, seed=stage.seed)
        held_steps = held_out_step(held, config, seed=stage.seed)
        desirable = sum(row.desirable for row in rows)
        undesirable = len(rows) - desirable
        about = f"{desirable:,} desirable and {undesirable:,} undesirable completions"
        stage.say(f"{about}, {len(held):,} held out, {said(cut)}")
        if advice := balance_advice(desirable, undesirable, config):
            stage.say(advice)
        # Before any step the policy is the reference.
        weights = weights_hash(model)
        reference, held_reference = (
            kto_reference(model, tokenizer, part, of, precision, begun.cache, weights=weights)
            for part, of in ((rows, steps), (held, held_steps))
        )
        policy = attach(model, config.lora, seed=stage.seed)
        looks = watched(stage, begun, policy)
        outcome = fit_kto(policy, tokenizer, rows, steps, reference, config, **begun.watched_by(looks))
        figures = held_out_figures(policy, tokenizer, held, held_steps, held_reference, config, precision)
        counts = {"desirable": desirable, "undesirable": undesirable, "unused": unused}
        ratio = weight_ratio(desirable, undesirable, config)
        finish(
            stage,
            policy,
            tokenizer,
            "The SFT policy, tuned by KTO.",
            about,
            {**counts, "weight_ratio": ratio, **cut_figures(cut), "held_out": figures, **outcome},
            looks,
        )


if __name__ == "__main__":
    main()
