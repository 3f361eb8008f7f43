"""Which files of this repository a stage's code consists of: the closure of its module's imports.

`python -m tasks.support.closure` says whether dvc.yaml lists them; `--write` makes it so.
"""

from __future__ import annotations

import argparse
import ast
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

PACKAGES = ("prefloop", "tasks")
PACKAGE_DATA = (".html", ".j2", ".css", ".svg")


def closure(module: str, root: Path = Path(".")) -> list[str]:
    """Files, as sorted POSIX paths under `root`, that importing `module` and calling its functions may read.

    Imports inside functions count; those under `if TYPE_CHECKING` do not, nothing runs them. Every package on
    the way gives its `__init__.py`, and the templates and style sheets beside its modules. An import by a
    name made at run time, `import_module(f"prefloop.x.{name}")`, brings in every module of that package.
    """
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        for file in _files_of(name, root):
            if file not in found:
                found.add(file)
                if file.suffix == ".py":
                    waiting.extend(_imports(file, root))
    return sorted(file.relative_to(root).as_posix() for file in found)


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """The module's file, and what each package above it contributes; nothing for no module of ours."""
    parts = module.split(".")
    if parts[0] not in PACKAGES:
        return
    path = root.joinpath(*parts)
    if path.with_suffix(".py").is_file():
        yield path.with_suffix(".py")
    elif (path / "__init__.py").is_file():
        yield path / "__init__.py"
    else:
        return
    for depth in range(1, len(parts)):
        package = root.joinpath(*parts[:depth])
        yield package / "__init__.py"
        if depth == len(parts) - 1:
            yield from (file for file in package.iterdir() if file.suffix in PACKAGE_DATA)


def _imports(file: Path, root: Path) -> Iterator[str]:
    package = file.relative_to(root).parent.parts
    for node in _executed(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            yield from _imported_by_name(node, root)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Walks a syntax tree without the bodies of `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from (other, *_executed(other))
            continue
        yield child
        yield from _executed(child)


def _imported_by_name(call: ast.Call, root: Path) -> Iterator[str]:
    if not call.args or ast.unparse(call.func).split(".")[-1] != "import_module":
        return
    name = call.args[0]
    if isinstance(name, ast.Constant):
        yield str(name.value)
    elif isinstance(name, ast.JoinedStr) and name.values and isinstance(name.values[0], ast.Constant):
        package = str(name.values[0].value).rstrip(".")
        if package.split(".")[0] in PACKAGES:
            yield from (f"{package}.{file.stem}" for file in root.joinpath(*package.split(".")).glob("*.py"))


def stage_module(command: str) -> str:
    """The module that a command runs: `python -m tasks.sft` gives `tasks.sft`; "" for another command."""
    words = shlex.split(command)
    return words[words.index("-m") + 1] if "-m" in words else ""


def with_closure(declared: list[str], module: str, root: Path) -> list[str]:
    """A stage's dependencies, the code among them replaced by the closure of `module`; data comes first."""
    data = [dep for dep in declared if dep.split("/")[0] not in PACKAGES]
    return data + closure(module, root)


def bodies(pipeline: Mapping[str, Any]) -> Iterator[tuple[str, CommentedMap]]:
    """Name and definition of every stage of a parsed dvc.yaml; a `foreach` gives its template once."""
    for name, stage in pipeline["stages"].items():
        yield name, stage.get("do", stage)


def main() -> int:
    """Compares dvc.yaml with the closures; 1 when it is out of date and `--write` was not given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="rewrite the code dependencies in dvc.yaml")
    write = parser.parse_args().write
    root, path = Path("."), Path("dvc.yaml")
    yaml = YAML()
    yaml.width = 110
    yaml.indent(mapping=2, sequence=4, offset=2)
    pipeline = yaml.load(path)
    stale = []
    for name, body in bodies(pipeline):
        module = stage_module(body["cmd"])
        if not module:
            continue
        wanted = with_closure(list(body.get("deps", [])), module, root)
        if wanted != list(body.get("deps", [])):
            stale.append(name)
            if "deps" in body:
                body["deps"] = wanted
            else:
                body.insert(1, "deps", wanted)  # after the command
    if stale and write:
        with open(path, "w", encoding="utf-8") as handle:
            yaml.dump(pipeline, handle)
    verdict = "rewritten" if write else "out of date"
    print(f"dvc.yaml: {', '.join(stale)} {verdict}" if stale else "dvc.yaml: up to date")
    return int(bool(stale) and not write)


if __name__ == "__main__":
    sys.exit(main())
