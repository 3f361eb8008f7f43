"""Python, the packages, and what torch can compute on."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from flows.checks.check import Check, broken, listed, note, ok
from flows.settings import child_environment

REINSTALL = "make clean-env run makes it anew; or: pip install -c constraints.txt -e '.[dev,lora]'"
PROBE_SECONDS = 120

Version = Callable[[str], str]


def installation(root: Path) -> Iterator[Check]:
    """Every check of this file."""
    yield python(sys.version_info[:3], root)
    yield packages(root)
    yield pins(root)
    yield from hardware(root)


def python(version: tuple[int, int, int], root: Path) -> Check:
    """The interpreter is one that pyproject.toml allows."""
    shown = ".".join(map(str, version))
    wanted = str(_project(root).get("requires-python", ">=3.11,<3.14"))
    if shown in SpecifierSet(wanted):
        return ok("python", f"{shown} ({sys.executable})")
    return broken(
        "python", f"{shown}, wanted {wanted}", "make clean-env; make run PYTHON=/path/to/python3.11"
    )


def packages(root: Path, version: Version = importlib.metadata.version) -> Check:
    """Every direct dependency is there, in a version that works."""
    missing, wrong = [], []
    requirements = [Requirement(text) for text in _project(root).get("dependencies", [])]
    for requirement in requirements:
        found = _installed(requirement.name, version)
        if not found:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (wanted {requirement.specifier})")
    if missing:
        return broken("packages", f"missing: {listed(missing)}", REINSTALL)
    if wrong:
        return broken("packages", f"wrong versions: {listed(wrong)}", REINSTALL)
    return ok("packages", f"all {len(requirements)} direct dependencies")


def pins(root: Path, version: Version = importlib.metadata.version) -> Check:
    """What is installed has the versions of constraints.txt, with which the tests ran."""
    path = root / "constraints.txt"
    if not path.exists():
        return note("versions", "there is no constraints.txt", "restore it: git checkout constraints.txt")
    checked, differing = 0, []
    for requirement in _requirements(path):
        found = _installed(requirement.name, version)
        if not found or (requirement.marker and not requirement.marker.evaluate()):
            continue
        checked += 1
        # "==2.13.0" takes a local version too, such as torch's 2.13.0+cpu.
        if not requirement.specifier.contains(found, prereleases=True):
            differing.append(f"{canonicalize_name(requirement.name)} {found} ({requirement.specifier})")
    if differing:
        return note(
            "versions", f"{len(differing)} differ from constraints.txt: {listed(differing)}", REINSTALL
        )
    return ok("versions", f"all {checked} as in constraints.txt")


def hardware(root: Path) -> Iterator[Check]:
    """Torch imports, and the device that params.yaml asks for is there; looked at in a process of its own."""
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tasks.hardware"],
            cwd=root,
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield broken(
            "torch",
            f"importing it took more than {PROBE_SECONDS} s",
            "look at the disk and the load, try again",
        )
        return
    try:
        found = json.loads(result.stdout)
    except ValueError:
        last = (result.stderr.strip().splitlines() or ["no word why"])[-1]
        yield broken("torch", f"cannot be used: {last}", REINSTALL)
        return
    yield ok("torch", f"{found['torch']}, {found['cores']} cores, {found['memory_gib']:.0f} GiB memory")
    if found["error"]:
        yield broken("device", found["error"], found["remedy"])
        return
    device = f"{found['device']} in {found['precision']}, {found['threads']} threads"
    if found["processes"] > 1:
        device += f", {found['processes']} processes" + " that shard weights" * (found["sharding"] == "full")
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']:.0f} GiB)" for gpu in found["gpus"])
    if found["device"] == "cpu" and found["driver"]:
        yield note(
            "device",
            f"{device}, though an NVIDIA driver is there",
            "if compute.device is not cpu on purpose, install a build of torch with CUDA",
        )
    else:
        yield ok("device", f"{device}{': ' + gpus if gpus else ''}")


def _project(root: Path) -> dict[str, Any]:
    """The `project` table of pyproject.toml."""
    path = root / "pyproject.toml"
    return dict(tomllib.loads(path.read_text(encoding="utf-8"))["project"]) if path.exists() else {}


def _requirements(path: Path) -> Iterator[Requirement]:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.partition("#")[0].strip()
        try:
            if text:
                yield Requirement(text)
        except InvalidRequirement:
            continue


def _installed(name: str, version: Version) -> str:
    try:
        return version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
