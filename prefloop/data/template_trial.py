"""Chat templates are programs that came with a model. One that is not prefloop's own is tried in a process
of its own before it is used, so that what never ends, or grows without end, is refused and not suffered.

What a template may reach is bounded by the sandbox in which transformers renders it, here as there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

from prefloop.data.template_child import CPU_SECONDS, GREW
from prefloop.errors import ModelError

_CHILD = Path(__file__).with_name("template_child.py")
_WALL_SECONDS = 300


def try_template(template: str, name: str) -> None:
    """Renders a few conversations with a template, within five seconds of CPU time and a gigabyte.

    Raises:
        ModelError: it needed more.
    """
    if reason := _fault(template):
        raise ModelError(
            f"the chat template of {name} {reason}, so it is not used",
            "put one that you trust into chat_template.jinja in the model's folder, or remove that file and "
            "prefloop uses a template of its own",
        )


@cache
def _fault(template: str) -> str:
    """Why a template is not to be used; empty where nothing speaks against it."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_CHILD)],
            input=json.dumps(template).encode(),
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "does not end"
    if done.returncode == GREW:
        return "grows without end"
    return f"does not end within {CPU_SECONDS} s" if done.returncode < 0 else ""
