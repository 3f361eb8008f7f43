"""The stage dpo: the SFT policy learns from comparisons without a reward model."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.dpo import DPOConfig
from prefloop.data.comparisons import rankings
from prefloop.data.holdout import split_holdout
from prefloop.files import read_jsonl
from prefloop.models.adapters import attach, merge
from prefloop.models.loading import load_policy
from prefloop.models.saving import save_model
from prefloop.training.dpo import encode_comparisons, fit_dpo, held_out_figures, reference_logprobs
from tasks.support.policy_stage import open_policy
from tasks.support.training import card, prepare, within_context

COMPARISONS = Path("data/validated/preferences.jsonl")


def main() -> None:
    """Writes models/POLICY."""
    with open_policy("dpo", DPOConfig) as stage:
        bench, config = prepare(stage), stage.config
        precision = bench.environment.precision
        stage.dataset("preferences", COMPARISONS)
        model, tokenizer = load_policy(
            "models/sft", device=bench.environment.device, trust_remote_code=bench.trust_remote_code
        )
        config = within_context(config, model)
        rows, held_rows = split_holdout(list(read_jsonl(COMPARISONS)), config.holdout, "dpo")
        (fitted, unused), (held, _) = rankings(rows), rankings(held_rows)
        comparisons, cut = encode_comparisons(fitted, tokenizer, config)
        held_comparisons, _ = encode_comparisons(held, tokenizer, config)
        pairs = sum(len(comparison.pairs) for comparison in comparisons)
        stage.say(f"{pairs:,} pairs of {len(fitted):,} prompts, {len(held):,} prompts held out, {cut:,} cut")
        # Before any step the policy is the reference.
        reference = reference_logprobs(
            model, tokenizer, comparisons, precision, stage.scratch / "reference.safetensors"
        )
        held_reference = reference_logprobs(model, tokenizer, held_comparisons, precision)
        policy = attach(model, config.lora, seed=stage.seed)
        fit_dpo(
            policy,
            tokenizer,
            comparisons,
            reference,
            config,
            seed=stage.seed,
            precision=precision,
            checkpoints=bench.checkpoints,
            recorder=stage.recorder,
        )
        figures = held_out_figures(policy, tokenizer, held_comparisons, held_reference, config, precision)
        with stage.output(f"models/{stage.part}") as folder:
            about = card(
                stage, "The SFT policy, tuned by DPO.", [f"{pairs:,} pairs of {len(fitted):,} prompts"]
            )
            save_model(merge(policy), tokenizer, folder, about)
        stage.metrics(
            {"pairs": pairs, "prompts": len(fitted), "unused": unused, "cut": cut, "held_out": figures}
        )


if __name__ == "__main__":
    main()
