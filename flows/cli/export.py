"""`prefloop export`: a trained model as a folder that other programs serve."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from flows.cli.models import fetch_if_absent
from flows.settings import child_environment

EPILOG = (
    "Examples: prefloop export ppo; prefloop export dpo --for vllm --dtype bfloat16; "
    "prefloop export ppo --for llama.cpp --out /srv/models/helpdesk"
)


class Target(StrEnum):
    """What the folder is for."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
    LLAMA_CPP = "llama.cpp"


class Precision(StrEnum):
    """Type of the weights."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def command(
    model: Annotated[str, typer.Argument(help="base, sft, ppo, dpo, or a model folder.")],
    out: Annotated[str, typer.Option(help="Folder to write; exports/MODEL-TARGET by default.")] = "",
    target: Annotated[
        Target, typer.Option("--for", help="Program whose command the folder's README gives.")
    ] = Target.TRANSFORMERS,
    dtype: Annotated[Precision, typer.Option(help="Type of the weights.")] = Precision.FLOAT32,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of words.")] = False,
) -> None:
    """Write a folder with weights, tokenizer and the command that serves it, and check it by loading it."""
    fetch_if_absent(model)
    arguments = [model, "--for", target.value, "--dtype", dtype.value]
    arguments += [f"--out={out}"] if out else []
    arguments += ["--json"] if as_json else []
    os.execve(sys.executable, [sys.executable, "-m", "tasks.export", *arguments], child_environment())
