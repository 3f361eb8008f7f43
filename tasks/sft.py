"""The stage sft: the base model learns to answer from demonstrations."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.sft import SFTConfig
from prefloop.data.holdout import split_holdout
from prefloop.files import read_jsonl
from prefloop.models.adapters import attach, merge
from prefloop.models.loading import load_policy
from prefloop.models.saving import save_model
from prefloop.training.language_model import encode_demonstrations, finetune, mean_loss
from tasks.support.stage import Stage
from tasks.support.training import card, prepare, within_context

DEMONSTRATIONS = Path("data/validated/demonstrations.jsonl")


def main() -> None:
    """Writes models/sft."""
    with Stage.open("sft", SFTConfig) as stage:
        bench, config = prepare(stage), stage.config
        precision = bench.environment.precision
        stage.dataset("demonstrations", DEMONSTRATIONS)
        model, tokenizer = load_policy(
            "models/base", device=bench.environment.device, trust_remote_code=bench.trust_remote_code
        )
        config = within_context(config, model)
        rows = [{"id": f"on line {n}", **row} for n, row in enumerate(read_jsonl(DEMONSTRATIONS), start=1)]
        rows, held = split_holdout(rows, config.holdout, "sft")
        every_turn = config.train_on == "assistant"
        encoded, cut = encode_demonstrations(rows, tokenizer, config.max_length, every_turn=every_turn)
        encoded_held, _ = encode_demonstrations(held, tokenizer, config.max_length, every_turn=every_turn)
        ends_cut = sum(not example.complete for example in encoded)
        stage.say(
            f"{len(encoded):,} demonstrations, {len(held):,} held out, "
            f"{cut:,} cut to {config.max_length} tokens, {ends_cut:,} of them at the answer's end"
        )
        policy = attach(model, config.lora, seed=stage.seed)
        outcome = finetune(
            policy,
            tokenizer,
            encoded,
            config,
            seed=stage.seed,
            precision=precision,
            checkpoints=bench.checkpoints,
            recorder=stage.recorder,
        )
        loss = mean_loss(policy, tokenizer, encoded_held, precision=precision)
        with stage.output("models/sft") as folder:
            data = f"{len(encoded):,} demonstrations of `{DEMONSTRATIONS}`, {cut:,} of them cut"
            measured = {"demonstrations": len(held), "loss": loss} if held else None
            about = card(stage, "The base model, fine-tuned on demonstrations.", [data], measured)
            save_model(merge(policy), tokenizer, folder, about)
        stage.metrics(
            {
                "demonstrations": len(encoded),
                "held_out": len(held),
                "cut": cut,
                "cut_completions": ends_cut,
                "held_out_loss": loss,
                **outcome,
            }
        )


if __name__ == "__main__":
    main()
