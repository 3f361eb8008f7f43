"""The image's build steps, as they stand in the Containerfile."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.infra.conftest import INFRA, REPOSITORY


def instructions(stage: int) -> list[tuple[str, str]]:
    """Word and rest of each instruction of a build stage, continued lines joined, comments left out."""
    lines = [line for line in (INFRA / "Containerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = [tuple(line.split(" ", 1)) for line in text.splitlines() if line.strip()]
    starts = [number for number, (word, _) in enumerate(found) if word == "FROM"] + [len(found)]
    return [(word, rest) for word, rest in found[starts[stage] : starts[stage + 1]]]


def copied(stage: int) -> list[tuple[list[str], str]]:
    """Sources and target of each COPY from the project."""
    words = [rest.split() for word, rest in instructions(stage) if word == "COPY"]
    return [(sources, target) for *sources, target in words if not sources[0].startswith("--from")]


def install_step() -> str:
    (step,) = [rest for word, rest in instructions(0) if word == "RUN" and "case" in rest]
    return step


def test_a_variant_that_is_none_is_refused():
    for variant in ("rocm", ""):
        done = subprocess.run(
            ["sh", "-euc", install_step()],
            env={"VARIANT": variant, "VENV": "/nowhere"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2
        assert b"VARIANT is cpu or cuda" in done.stderr


@pytest.mark.parametrize(
    ("variant", "index", "expected"),
    [
        ("cpu", "https://torch.example/cpu", ["--extra-index-url", "https://torch.example/cpu"]),
        ("cpu", "", []),
        ("cuda", "https://torch.example/cpu", []),
    ],
)
def test_pip_is_told_where_torch_is_and_holds_to_the_constraints(variant, index, expected, tmp_path):
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{tmp_path}/words\n')
    python.chmod(0o755)
    variables = {"VARIANT": variant, "VENV": str(tmp_path), "TORCH_INDEX": index}
    subprocess.run(["sh", "-euc", install_step()], env=variables, check=True)
    words = (tmp_path / "words").read_text().splitlines()
    wanted = ["--constraint", "constraints.txt", *expected, ".[lora,servers,s3]"]
    assert words == ["-m", "pip", "install", *wanted]


def test_the_build_gets_all_that_the_package_is_made_of_and_nothing_that_is_ignored():
    sources = [name for stage in (0, 1) for names, _ in copied(stage) for name in names]
    assert all((REPOSITORY / name).exists() for name in sources)
    ignore = (INFRA / "Containerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert {Path(name).parts[0] for name in sources} == allowed
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    named = {project["project"]["readme"], *project["project"]["license-files"]}
    assert packages | named | {"pyproject.toml", "constraints.txt"} <= set(sources)


def test_everything_that_the_image_installs_is_pinned():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras["lora"], *extras["servers"]]]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pins = {
        canonicalize_name(one.name): one.specifier
        for one in map(Requirement, filter(None, (line.partition("#")[0].strip() for line in lines)))
    }
    for one in wanted:
        (pin,) = pins[canonicalize_name(one.name)]
        assert pin.operator == "=="
        assert one.specifier.contains(pin.version), f"{one} and the pin {pin}"
