"""The image's build steps."""

from __future__ import annotations

import re
import subprocess

from tests.infra.conftest import INFRA


def instructions(stage: int) -> list[tuple[str, str]]:
    """Word and rest of each instruction of a build stage, continued lines joined, comments left out."""
    lines = [line for line in (INFRA / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [tuple(line.split(" ", 1)) for line in text.splitlines() if line.strip()]
    starts = [number for number, (word, _) in enumerate(found) if word == "FROM"] + [len(found)]
    return [(word, rest) for word, rest in found[starts[stage] : starts[stage + 1]]]


def test_a_variant_that_is_none_is_refused():
    (install,) = [rest for word, rest in instructions(0) if word == "RUN" and "case" in rest]
    for variant in ("rocm", ""):
        done = subprocess.run(
            ["sh", "-euc", install],
            env={"VARIANT": variant, "VENV": "/nowhere"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        assert b"VARIANT is cpu or cuda" in done.stderr
