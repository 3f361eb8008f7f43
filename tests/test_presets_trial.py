"""Each preset for a hub model trains every stage at a tiny size, on random weights of its architecture."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from prefloop.config.params import parse_params
from prefloop.config.policies import overlaid
from prefloop.config.read import read_yaml
from prefloop.models.creating import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
# Model type of the preset's model, and whether its tokenizer has a chat template: the Llama bases have none.
ARCHITECTURES = {
    "qwen-0.5b-hh": ("qwen2", True),
    "llama-1b-ultrafeedback": ("llama", False),
    "llama-8b-lora-ultrafeedback": ("llama", False),
}
STAGES = ("environment", "base", "sft", "reward", "judge", "ppo", "dpo")
TRAINED = {"sft": "loss", "reward": "loss", "judge": "loss", "ppo": "policy_loss", "dpo": "loss"}
WORDS = ("red", "blue", "green", "small", "large", "new", "old", "round")


def tiny_model(model_type: str, chat_template: bool, folder: Path) -> None:
    """Saves a model with widths of some dozens, and a tokenizer of some hundred tokens."""
    tokenizer = train_tokenizer([f"The lamp is {word}." for word in WORDS] * 4, 320, 64)
    if not chat_template:
        tokenizer.chat_template = None
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    # As on the hub: nothing of ours prepared the folder.
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def shrunk(values: Mapping[str, Any]) -> dict[str, Any]:
    """The preset with its own method, rates, adapters and schedule, at sizes that take seconds."""
    result = json.loads(json.dumps(values))
    result["compute"]["threads"] = 1
    result["base"] |= {"model": "hub/model", "random_weights": True}
    for section in ("sft", "reward", "judge", "ppo", "dpo"):
        small = {"max_length": 48, "steps": 2, "batch_size": 4}
        small["micro_batch_size"] = 2 if result[section]["micro_batch_size"] else 0
        result[section] |= small
    for section in ("reward", "judge"):
        result[section] |= {"normalise_prompts": 8, "bootstrap": 100}
    result["ppo"] |= {"minibatches": 2, "select_prompts": 2, "select_every": 1}
    result["ppo"]["sampling"]["max_new_tokens"] = 8
    return result


def write_rows(folder: Path) -> None:
    """The validated rows that training stages read."""
    folder.mkdir(parents=True)
    prompts = [f"What is the {word} lamp, number {n}?" for n, word in enumerate(WORDS * 4)]
    good, bad = "It is a lamp.", "No."
    rows = {
        "demonstrations": [{"prompt": p, "completion": good} for p in prompts],
        "preferences": [{"prompt": p, "chosen": good, "rejected": bad} for p in prompts],
        "judge": [{"prompt": p, "completions": [bad, good, "Lamp."], "ranks": [2, 0, 1]} for p in prompts],
        "prompts": [{"prompt": p} for p in prompts],
        "text": [{"text": good}],
    }
    for kind, lines in rows.items():
        text = "".join(json.dumps({"id": f"{kind}-{n}", **row}) + "\n" for n, row in enumerate(lines))
        (folder / f"{kind}.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    monkeypatch.setattr(sys, "argv", ["stage"])
    (tmp_path / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    write_rows(tmp_path / "data" / "validated")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_preset_trains_every_stage(name: str, workspace: Path) -> None:
    model_type, chat_template = ARCHITECTURES[name]
    tiny_model(model_type, chat_template, workspace / "hub" / "model")
    values = overlaid(read_yaml(ROOT / "params.yaml"), read_yaml(ROOT / "presets" / f"{name}.yaml"))
    parse_params(shrunk(values))
    (workspace / "params.yaml").write_text(yaml.safe_dump(shrunk(values)), encoding="utf-8")
    for stage in STAGES:
        importlib.import_module(f"tasks.{stage}").main()
    for stage, column in TRAINED.items():
        header, *lines = (workspace / "plots" / f"{stage}.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2
        losses = [float(line.split(",")[header.split(",").index(column)]) for line in lines]
        assert all(math.isfinite(loss) for loss in losses)
        undocumented = set(header.split(",")) - {"step"} - documented_metrics(stage)
        assert not undocumented, f"docs/{stage}.md does not define {undocumented}"
    for policy in ("sft", "ppo", "dpo"):
        loaded = AutoModelForCausalLM.from_pretrained(workspace / "models" / policy)
        assert loaded.config.model_type == model_type
        assert not list((workspace / "models" / policy).glob("adapter*")), "adapters are merged"


def documented_metrics(stage: str) -> set[str]:
    """Names in the tables headed "metric" of a stage's page and of the page that training stages share."""
    pages = [stage, "training", "looks", *(["reward"] if stage == "judge" else [])]
    names = set()
    for page in pages:
        in_table = False
        for line in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").splitlines():
            in_table = line.startswith("| metric ") or (in_table and line.startswith("|"))
            if in_table and line.startswith("| `"):
                names.add(line.split("`")[1])
    return names
