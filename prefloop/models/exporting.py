"""Folders that other programs load and serve, checked by loading them back as those programs do."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from prefloop.data.default_templates import ROLE_TEMPLATE
from prefloop.data.templates import ChatEncoder, as_messages, render
from prefloop.errors import ModelError
from prefloop.files import atomic_folder, read_json
from prefloop.models.loading import context_length, load_policy
from prefloop.models.saving import save_model

Target = Literal["transformers", "vllm", "llama.cpp"]
Precision = Literal["float32", "bfloat16", "float16"]

_PROBE = "What can you do for me?"
_TOLERANCE = 1e-5
"""Largest difference of log-probs between the models in memory and on disk; they hold equal numbers."""


def export_model(source: Path, folder: Path, target: Target, dtype: Precision = "float32") -> None:
    """Writes a policy's weights, tokenizer, chat template and generation configuration, with a README.

    Args:
        source: a policy's folder.
        folder: appears whole or not at all; it must not exist, or hold an earlier export.
        target: what the README's command serves it with; the files are the same.
        dtype: of the weights that are written.

    Raises:
        ModelError: `source` is no causal language model, `folder` holds something else, or what was written
            does not load back to the same model.
    """
    _check_causal(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is there already and is no model folder", "name another folder with --out"
        )
    model, tokenizer = load_policy(source, dtype=getattr(torch, dtype))
    with atomic_folder(folder) as draft:
        save_model(model, tokenizer, draft)
        (draft / "README.md").write_text(_readme(source, folder, target, model, tokenizer), encoding="utf-8")
        check_export(model, tokenizer, draft)


def check_export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Loads `folder` with nothing but transformers' auto classes and holds it against the model in memory.

    Raises:
        ModelError: another rendering of a conversation, other tokens, or other log-probs.
    """
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    reader = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    messages = as_messages(_PROBE)
    rendered = render(tokenizer, messages, generation_prompt=True)
    if reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) != rendered:
        raise ModelError(f"{folder}: the chat template did not survive the export")
    ids = ChatEncoder(tokenizer, context_length(model)).prompt(messages)
    if reader(rendered, add_special_tokens=False)["input_ids"] != ids:
        raise ModelError(f"{folder}: the tokenizer did not survive the export")
    with torch.no_grad():
        tokens = torch.tensor([ids])
        before, after = (
            torch.log_softmax(m(tokens).logits[0, -1].float(), -1) for m in (model.cpu(), loaded)
        )
    difference = float((before - after).abs().max())
    if not difference <= _TOLERANCE:
        raise ModelError(f"{folder}: log-probs differ by {difference:.2g} after loading the export back")


def _check_causal(source: Path) -> None:
    architectures = read_json(source / "config.json").get("architectures") or []
    if any("SequenceClassification" in name for name in architectures):
        raise ModelError(
            f"{source} is a reward model, which writes no text",
            "its folder loads with AutoModelForSequenceClassification as it is; export base, sft, ppo or dpo",
        )


def _readme(
    source: Path, folder: Path, target: Target, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> str:
    size = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    lines = ["---", "library_name: transformers", "---", "", f"# {source.name}", ""]
    lines += [
        f"A {model.config.model_type} model of {size:,} parameters ({dtype}), exported by prefloop from",
        f"`{source.as_posix()}`, with its tokenizer, chat template and generation configuration.",
        "",
        *serving(folder, target, model, tokenizer),
    ]
    return "\n".join(lines) + "\n"


def serving(
    folder: Path, target: Target, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Lines of Markdown: the command that serves an exported folder, and what there is to know about it."""
    name, path = shlex.quote(folder.name), shlex.quote(folder.as_posix())
    context = context_length(model)
    if target == "vllm":
        return [
            "## Serve with vLLM",
            "",
            "```sh",
            f"vllm serve {path} --served-model-name {name} --max-model-len {min(context, 8192)}",
            "```",
            "",
            *_curl(folder.name, 8000),
        ]
    if target == "llama.cpp":
        file = shlex.quote((folder / f"{folder.name}.gguf").as_posix())
        lines = [
            "## Serve with llama.cpp",
            "",
            "```sh",
            f"python llama.cpp/convert_hf_to_gguf.py {path} --outfile {file}",
            f"llama-server -m {file} --jinja -c {min(context, 8192)}",
            "```",
            "",
            *_curl(folder.name, 8080),
        ]
        if tokenizer.chat_template == ROLE_TEMPLATE:
            lines += [
                "",
                "The converter knows tokenizers by a checksum, and this one was trained here. When it stops",
                "with `BPE pre-tokenizer was not recognized`, add the checksum that it prints to its",
                '`get_vocab_base_pre`, with `res = "gpt-2"`: that is how this tokenizer splits words.',
            ]
        return lines
    return [
        "## Use with transformers",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'chat = pipeline("text-generation", model={folder.as_posix()!r})',
        f'answer = chat([{{"role": "user", "content": "{_PROBE}"}}], max_new_tokens=64)',
        'print(answer[0]["generated_text"][-1]["content"])',
        "```",
        "",
        f"Or as a server: `transformers serve {path}`.",
    ]


def _curl(name: str, port: int) -> list[str]:
    body = {"model": name, "messages": [{"role": "user", "content": _PROBE}]}
    return [
        "```sh",
        f"curl http://127.0.0.1:{port}/v1/chat/completions -H 'Content-Type: application/json' \\",
        f"  -d {shlex.quote(json.dumps(body))}",
        "```",
    ]
