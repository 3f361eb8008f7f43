"""`prefloop chat`: talk to a trained model."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from flows.cli.models import fetch_if_absent
from flows.settings import child_environment

EPILOG = (
    "Examples: prefloop chat ppo; prefloop chat sft --prompt 'What colour is the kettle?'; "
    "echo 'Hello' | prefloop chat dpo --temperature 0"
)


def command(
    model: Annotated[str, typer.Argument(help="base, sft, ppo, dpo, or a model folder.")],
    prompt: Annotated[str, typer.Option(help="Answer this and end.")] = "",
    system: Annotated[str, typer.Option(help="System message, where the chat template takes one.")] = "",
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus of the sampling.")] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Longest answer (tokens); 0 is half the context, 512 at most.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal answers.")] = 0,
) -> None:
    """Talk to a trained model: in turns on a terminal, or one answer to --prompt or to what is piped in."""
    fetch_if_absent(model)
    arguments = ["--temperature", str(temperature), "--top-p", str(top_p), "--seed", str(seed)]
    arguments += ["--max-new-tokens", str(max_new_tokens), f"--prompt={prompt}", f"--system={system}"]
    # This process becomes the one with torch: the terminal and its signals are that one's alone.
    os.execve(sys.executable, [sys.executable, "-m", "tasks.chat", model, *arguments], child_environment())
