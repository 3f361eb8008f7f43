"""`python -m tasks.chat MODEL`: talk to a trained policy, in turns or with one prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from transformers.utils.logging import disable_progress_bar

from prefloop.config.compute import ComputeConfig
from prefloop.config.read import read_section
from prefloop.config.rollout import SamplingConfig
from prefloop.data.templates import Messages
from prefloop.errors import ConfigError
from prefloop.models.loading import context_length, load_policy
from prefloop.printable import printable
from prefloop.rollout.streaming import stream
from prefloop.training.environment import apply, resolve
from tasks.support.ending import ended_well
from tasks.support.models import find_model
from tasks.support.signals import StopFlag

Answer = Callable[[Messages, int], Iterator[str]]


def main() -> None:
    """Answers `--prompt`, or what is piped in, and ends; on a terminal it takes turns."""
    parser = argparse.ArgumentParser(prog="prefloop chat", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--system", default="")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--max-new-tokens", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with ended_well("chat", StopFlag()), interruptible():
        disable_progress_bar()
        answer = load(arguments)
        opening: Messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
        prompt = arguments.prompt or ("" if sys.stdin.isatty() else sys.stdin.read().strip())
        if prompt:
            say(answer([*opening, {"role": "user", "content": prompt}], 0))
        elif sys.stdin.isatty():
            talk(arguments.model, opening, answer)


def load(arguments: argparse.Namespace) -> Answer:
    """A function from a conversation and its turn's number to the pieces of an answer."""
    source = find_model(arguments.model)
    compute = read_section("compute", ComputeConfig)
    environment = resolve(compute)
    apply(environment)
    model, tokenizer = load_policy(
        source, device=environment.device, trust_remote_code=compute.trust_remote_code
    )
    length = arguments.max_new_tokens or min(512, context_length(model) // 2)
    try:
        sampling = SamplingConfig(length, arguments.temperature, arguments.top_p)
    except ValueError as error:
        raise ConfigError(f"chat: {error}", "prefloop chat --help") from error

    def answer(messages: Messages, turn: int) -> Iterator[str]:
        key = (arguments.seed, "chat", turn)
        return stream(model, tokenizer, messages, sampling, key, environment.precision)

    return answer


def talk(name: str, opening: Messages, answer: Answer) -> None:
    """Takes turns until the input ends. Ctrl-C breaks off an answer, or ends the talk at the prompt."""
    print(f"{name}: /new begins anew, /quit or Ctrl-D ends")
    messages = list(opening)
    while (line := ask()) not in (None, "/quit"):
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": say(answer(messages, len(messages)))})


def ask() -> str | None:
    """A line from the person; None at the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def say(pieces: Iterator[str]) -> str:
    """Prints an answer as it comes and returns it; Ctrl-C breaks it off."""
    said = ""
    try:
        for piece in pieces:
            print(printable(piece), end="", flush=True)
            said += piece
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    return said


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the block as it ends other commands: without a traceback, with exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        print()
        sys.exit(130)


if __name__ == "__main__":
    main()
