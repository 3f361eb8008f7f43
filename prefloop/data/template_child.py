"""Renders conversations with a chat template from standard input, in little time and memory; run by its path.

Ends with 0, with `GREW` where memory or what is written grows beyond its bound, or by SIGXCPU. A template
that refuses a conversation is not at fault here.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

CPU_SECONDS = 5
MEMORY_BYTES = 1 << 30
LONGEST = 8 << 20
"""Characters that a conversation of about 100,000 may become."""
GREW = 41


def conversations() -> list[list[dict[str, str]]]:
    """Short and long ones, with and without a system prompt."""
    user, assistant = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}
    system = {"role": "system", "content": "Be brief."}
    long = [{**user, "content": "word " * 400}, {**assistant, "content": "word " * 400}] * 25
    return [[user], [user, assistant], [system, user, assistant, user], [user, assistant] * 40, long]


def main() -> None:
    """Renders all of them."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    try:
        template = _compiled(json.load(sys.stdin))
        for messages in conversations():
            _render(template, messages)
    except (MemoryError, OverflowError, RecursionError):
        sys.exit(GREW)
    except Exception:
        return  # broken, or forbidden by the sandbox: whoever renders with it says so


def _render(template: Any, messages: list[dict[str, str]]) -> None:
    length = 0
    try:
        context = {"messages": messages, "add_generation_prompt": True, "bos_token": "", "eos_token": ""}
        for piece in template.generate(**context):
            length += len(piece)
            if length > LONGEST:
                sys.exit(GREW)
    except (MemoryError, OverflowError, RecursionError):
        raise
    except Exception:
        return  # the template takes no such conversation


def _compiled(text: str) -> Any:
    """The template in the sandbox that transformers uses."""
    from jinja2 import ext, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(ext.Extension):
        tags = {"generation"}  # noqa: RUF012 - as jinja2 has it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    environment.filters["tojson"] = lambda value, **options: json.dumps(value)
    return environment.from_string(text)


if __name__ == "__main__":
    main()
