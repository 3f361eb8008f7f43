"""The image's build steps, run in a fresh virtual environment; those for Debian packages are not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA, REPOSITORY


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


@pytest.mark.slow
def test_the_build_steps_make_an_environment_in_which_prefloop_runs(tmp_path):
    pip = [sys.executable, "-m", "pip"]
    asked = [*pip, "download", "--quiet", "--no-deps", "--dest", str(tmp_path / "asked"), "wtforms"]
    if subprocess.run(asked, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("no package index answers")
    source = tmp_path / "src"
    source.mkdir()
    variables = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "VENV": str(tmp_path / "venv"),
        "VARIANT": "cpu",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    if "PIP_FIND_LINKS" in os.environ:  # the CPU build of torch lies there
        variables["TORCH_INDEX"] = ""
    ran = 0
    for word, rest in instructions(0):
        if word == "ARG":
            name, _, value = rest.partition("=")
            variables.setdefault(name, value)
        elif word == "COPY":
            *names, target = rest.split()
            for name in names:
                place = source / target
                if (REPOSITORY / name).is_dir():
                    shutil.copytree(REPOSITORY / name, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(REPOSITORY / name, place)
        elif word == "RUN":
            done = subprocess.run(
                ["sh", "-euc", rest], cwd=source, env=variables, timeout=1200,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            assert not done.returncode, done.stdout[-4000:]
            ran += 1
    assert ran == 3
    python = str(tmp_path / "venv/bin/python")
    check = "import boto3, flows.deployed, flask_wtf, psycopg2, tasks; print(tasks.__file__)"
    done = subprocess.run([python, "-c", check], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "venv") in done.stdout, "prefloop is installed, not found beside"
