"""Arrows go one way, flows -> tasks -> prefloop; each room imports where the others' tools are absent."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ALLOWED = {
    "prefloop": {"prefloop"},
    "tasks": {"prefloop", "tasks"},
    "flows": {"prefloop", "tasks", "flows"},
}
MODELS = ("torch", "transformers", "datasets", "peft")
SERVICES = ("prefect", "mlflow", "dvc", "datasets", "great_expectations", "pydantic", "datasketch")

# Imports every named module as on a machine that lacks some packages, and prints those that fail.
IMPORT_WITHOUT = """
import importlib, sys
from importlib.machinery import PathFinder
absent, modules = sys.argv[1].split(","), sys.argv[2:]

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"{module}: {error}")
"""


def modules(package: str, root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported_packages(path: Path) -> Iterator[tuple[int, str]]:
    """Line and first name of everything a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_one_way(package: str, repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line} imports {name}"
        for _, path in modules(package, repository)
        for line, name in imported_packages(path)
        if name in ALLOWED and name not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_package_imports_its_own_modules(repository: Path) -> None:
    # A stage's import closure is its code: a package that imports every method ties them together.
    wrong = [
        str(path.relative_to(repository))
        for package in ALLOWED
        for _, path in modules(package, repository)
        if path.name == "__init__.py" and any(name in ALLOWED for _, name in imported_packages(path))
    ]
    assert not wrong


def import_without(absent: tuple[str, ...], names: list[str], root: Path) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT, ",".join(absent), *names],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
def test_flows_imports_without_torch(repository: Path) -> None:
    assert import_without(MODELS, [name for name, _ in modules("flows", repository)], repository) == []


@pytest.mark.slow
def test_the_library_imports_without_servers_and_tools(repository: Path) -> None:
    # Great Expectations and MinHash are for validation alone, which a training machine never runs.
    names = [
        name for name, _ in modules("prefloop", repository) if not name.startswith("prefloop.data.validation")
    ]
    assert import_without(SERVICES, names, repository) == []


def test_the_library_never_names_a_server(repository: Path) -> None:
    wrong = [
        f"{path.relative_to(repository)}:{line} imports {name}"
        for _, path in modules("prefloop", repository)
        for line, name in imported_packages(path)
        if name in {"prefect", "mlflow", "dvc", "typer", "rich"}
    ]
    assert not wrong, "\n".join(wrong)


def test_help_is_quick_to_import(repository: Path) -> None:
    # `prefloop --help` must not pay for what a run needs.
    heavy = (*MODELS, "prefect", "mlflow", "dvc", "great_expectations", "pandas", "matplotlib")
    assert import_without(heavy, ["flows.cli.main"], repository) == []
