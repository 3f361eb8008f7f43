"""An export loads with transformers alone; one that went wrong is refused and leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from prefloop.config.base import ArchitectureConfig
from prefloop.errors import ModelError
from prefloop.models import exporting
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.models.saving import save_model

TEXTS = ["The kettle is blue.", "The lamp is red.", "I cannot help with that."] * 4


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = ArchitectureConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=1
    )
    tokenizer = train_tokenizer(TEXTS, shape.vocab_size, shape.context)
    folder = tmp_path_factory.mktemp("models") / "ppo"
    save_model(create_model(shape, tokenizer, seed=0), tokenizer, folder)
    return folder


@pytest.mark.parametrize(
    ("target", "command"),
    [("transformers", "transformers serve"), ("vllm", "vllm serve"), ("llama.cpp", "llama-server -m")],
)
def test_an_export_loads_with_transformers_alone(
    policy: Path, tmp_path: Path, target: exporting.Target, command: str
) -> None:
    folder = tmp_path / "out"
    exporting.export_model(policy, folder, target)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{"role": "user", "content": "What colour is the lamp?"}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert output.shape[1] <= inputs["input_ids"].shape[1] + 4
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [tokenizer.eos_token_id]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"{command} {folder.as_posix()}" in readme
    # A tokenizer trained here is unknown to llama.cpp's converter, and the README says what to do.
    assert ("get_vocab_base_pre" in readme) == (target == "llama.cpp")


def test_weights_are_written_in_the_type_asked_for(policy: Path, tmp_path: Path) -> None:
    exporting.export_model(policy, tmp_path / "out", "vllm", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert model.dtype is torch.bfloat16


def test_an_export_replaces_an_earlier_one_but_nothing_else(policy: Path, tmp_path: Path) -> None:
    exporting.export_model(policy, tmp_path / "out", "transformers")
    exporting.export_model(policy, tmp_path / "out", "vllm")
    assert "vLLM" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("keep me")
    with pytest.raises(ModelError, match="is no model folder"):
        exporting.export_model(policy, other, "transformers")
    assert (other / "dear.txt").read_text() == "keep me"


def test_an_export_that_does_not_load_to_the_same_model_leaves_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_damaged(model, tokenizer, folder):  # type: ignore[no-untyped-def]
        save_model(model, tokenizer, folder)
        damaged = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            damaged.get_input_embeddings().weight[:, 0] += 0.5
        damaged.save_pretrained(folder)

    monkeypatch.setattr(exporting, "save_model", save_damaged)
    with pytest.raises(ModelError, match="log-probs differ"):
        exporting.export_model(policy, tmp_path / "out", "transformers")
    assert list(tmp_path.iterdir()) == []


def test_a_reward_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    with pytest.raises(ModelError, match="is a reward model") as caught:
        exporting.export_model(tmp_path, tmp_path / "out", "transformers")
    assert "export base, sft, ppo or dpo" in caught.value.remedy
