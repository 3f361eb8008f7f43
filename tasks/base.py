"""The stage base: pre-trains a small model from a configuration, or takes one from a folder or the hub."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.base import BaseConfig
from prefloop.files import read_jsonl
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.models.hub import resolve_revision
from prefloop.models.loading import load_policy, to_device
from prefloop.models.saving import save_model
from prefloop.training.language_model import encode_blocks, mean_loss, pack_documents, pretrain
from prefloop.training.noise import torch_seed
from tasks.support.stage import Stage
from tasks.support.training import Workbench, card, prepare

TEXT = Path("data/validated/text.jsonl")


def adopt(stage: Stage[BaseConfig], bench: Workbench) -> None:
    """Saves the configured model as models/base, its revision pinned to a commit."""
    config = stage.config
    revision = resolve_revision(config.model, config.revision)
    torch_seed((stage.seed, "base", "random weights"))
    model, tokenizer = load_policy(
        config.model,
        revision=revision,
        trust_remote_code=bench.trust_remote_code,
        random_weights=config.random_weights,
    )
    with stage.output("models/base") as folder:
        save_model(
            model, tokenizer, folder, card(stage, f"`{config.model}` at `{revision or 'a local folder'}`", [])
        )
    stage.metrics({"parameters": model.num_parameters(), "revision": revision or ""})


def make(stage: Stage[BaseConfig], bench: Workbench) -> None:
    """Trains tokenizer and model on data/validated/text.jsonl."""
    config = stage.config
    stage.dataset("text", TEXT)
    texts = [row["text"] for row in read_jsonl(TEXT)]
    tokenizer = train_tokenizer(texts, config.architecture.vocab_size, config.architecture.context)
    model = to_device(create_model(config.architecture, tokenizer, stage.seed), bench.environment.device)
    length = min(config.max_length, config.architecture.context)
    blocks = pack_documents(texts, tokenizer, length)
    every = max(len(blocks) // 32, 2)
    held, fit = blocks[::every], [block for i, block in enumerate(blocks) if i % every]
    stage.say(f"{model.num_parameters():,} parameters, {sum(map(len, blocks)):,} tokens of text")
    outcome = pretrain(
        model,
        tokenizer,
        fit,
        config,
        seed=stage.seed,
        precision=bench.environment.precision,
        checkpoints=bench.checkpoints,
        recorder=stage.recorder,
    )
    loss = mean_loss(model, tokenizer, encode_blocks(held), precision=bench.environment.precision)
    with stage.output("models/base") as folder:
        kind = config.architecture.model_type
        about = f"A {kind} of {model.num_parameters():,} parameters, pre-trained from scratch."
        save_model(model, tokenizer, folder, card(stage, about, [f"{len(texts):,} documents of {TEXT}"]))
    stage.metrics(
        {
            "parameters": model.num_parameters(),
            "documents": len(texts),
            "tokens": sum(map(len, blocks)),
            "vocabulary": len(tokenizer),
            "held_out_loss": loss,
            **outcome,
        }
    )


def main() -> None:
    """Writes models/base."""
    with Stage.open("base", BaseConfig) as stage:
        bench = prepare(stage)
        if stage.config.model:
            adopt(stage, bench)
        else:
            make(stage, bench)


if __name__ == "__main__":
    main()
