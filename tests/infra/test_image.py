"""The image's build steps: as they stand in the Containerfile, in a fresh virtual environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.infra.conftest import INFRA, REPOSITORY

IGNORED = shutil.ignore_patterns("__pycache__", "secrets", ".env")
IMPORTS = [
    "torch",
    "transformers",
    "datasets",
    "peft",
    "prefect",
    "dvc.repo",
    "mlflow",
    "psycopg2",
    "boto3",
    "great_expectations",
    "flows.cli.main",
    "flows.deployed",
    "flows.workers.stage",
    "flows.automations",
    "tasks.sft",
    "tasks.ppo",
    "tasks.report",
    "prefloop.report.page",
    "prefloop.data.validation.page",
]


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


def assignments(stage: int, word: str) -> dict[str, str]:
    """What ENV or ARG instructions set."""
    rests = [rest for found, rest in instructions(stage) if found == word]
    return dict(pair.partition("=")[::2] for rest in rests for pair in rest.split())


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


@pytest.mark.servers
def test_the_build_steps_make_an_environment_that_works(tmp_path):
    """Minutes, and package registries: `make test-servers` runs it, the suite does not."""
    source, venv = tmp_path / "src", tmp_path / "venv"
    source.mkdir()
    for names, target in copied(0):
        for name in names:
            place = source / target
            if (REPOSITORY / name).is_dir():
                shutil.copytree(REPOSITORY / name, place, ignore=IGNORED)
            else:
                shutil.copy2(REPOSITORY / name, place)
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    arguments = {**assignments(0, "ARG"), "TORCH_INDEX": os.environ.get("TORCH_INDEX", "")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    built = {
        **pip,
        **assignments(0, "ENV"),
        **arguments,
        "VENV": str(venv),
        "PATH": path,
        "HOME": str(tmp_path),
    }
    for step in [rest for word, rest in instructions(0) if word == "RUN"]:
        done = subprocess.run(["sh", "-euc", step], cwd=source, env=built, capture_output=True, text=True)
        assert done.returncode == 0, f"{step}\n{(done.stdout + done.stderr)[-4000:]}"

    ((names, _),) = copied(1)
    assert names == ["infra"]
    shutil.copytree(INFRA, venv / "infra", ignore=IGNORED)
    shutil.rmtree(source)  # what is installed stands by itself
    secret = tmp_path / "password"
    secret.write_text("of MLflow")
    settings = {name: value for name, value in assignments(1, "ENV").items() if name != "PATH"}
    variables = {"PATH": f"{venv}/bin:/usr/bin:/bin", "HOME": str(tmp_path), **settings}
    variables["MLFLOW_TRACKING_PASSWORD_FILE"] = str(secret)

    (entry,) = [json.loads(rest) for word, rest in instructions(1) if word == "ENTRYPOINT"]
    assert entry[:2] == ["tini", "--"]
    home = assignments(0, "ENV")["VENV"]

    def inside(*command: str) -> str:
        words = [*(word.replace(home, str(venv)) for word in entry[2:]), *command]
        done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    assert "run the pipeline" in inside("prefloop", "--help")
    assert inside("sh", "-c", 'printf %s "$MLFLOW_TRACKING_PASSWORD"') == "of MLflow"
    program = "import importlib, json, sys; m = {n: importlib.import_module(n) for n in sys.argv[1:]}; "
    program += "print(json.dumps({n: getattr(v, '__file__', '') for n, v in m.items()}))"
    places = json.loads(inside("python", "-c", program, *IMPORTS).splitlines()[-1])
    assert all(place.startswith(str(venv)) for place in places.values()), places
    for name in ("report/report.css", "report/report.html.j2", "data/validation/page.html.j2"):
        assert (Path(places["prefloop.report.page"]).parents[1] / name).exists()
    installed = dict(
        line.split("==") for line in inside("python", "-m", "pip", "freeze").splitlines() if "==" in line
    )
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;#]+)", (REPOSITORY / "constraints.txt").read_text(), re.M))
    pins = {canonicalize_name(name): version for name, version in pinned.items()}
    brought = re.compile(r"nvidia-|cuda-|triton")  # by torch where no CPU build was found
    for name, version in installed.items():
        if brought.match(name) and name not in pins:
            continue
        assert version.partition("+")[0] == pins[canonicalize_name(name)].partition("+")[0], name
    assert "mlflow, version" in inside("mlflow", "--version")
    assert inside("prefect", "version").startswith("Version:")
