"""Which files of this repository a module's code consists of: the closure of its imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGES = ("prefloop", "tasks")
PACKAGE_DATA = (".html", ".j2", ".css", ".svg")


class Tree:
    """The code under one root; each file is parsed once, however many closures it is part of."""

    def __init__(self, root: Path = Path(".")) -> None:
        self._root = root
        self._files_of = cache(self._find_files)
        self._imports_of = cache(self._read_imports)

    def closure(self, module: str) -> list[str]:
        """Sorted POSIX paths, under the root, of the files that importing and using `module` may read.

        Imports inside functions count; those under `if TYPE_CHECKING` do not, nothing runs them. Every
        package on the way gives its `__init__.py`, and the templates and style sheets beside its modules. An
        import by a name made at run time, `import_module(f"prefloop.x.{name}")`, brings in every module of
        that package.
        """
        found: set[str] = set()
        seen = {module}
        waiting = [module]
        while waiting:
            for file in self._files_of(waiting.pop()):
                if file not in found:
                    found.add(file)
                    new = self._imports_of(file) - seen
                    seen |= new
                    waiting += new
        return sorted(found)

    def _find_files(self, module: str) -> tuple[str, ...]:
        """The module's file, and what each package above it contributes; nothing for no module of ours."""
        parts = module.split(".")
        if parts[0] not in PACKAGES:
            return ()
        name = "/".join(parts)
        file = next(
            (file for file in (f"{name}.py", f"{name}/__init__.py") if (self._root / file).is_file()), ""
        )
        if not file:
            return ()
        packages = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        inits = [f"{package}/__init__.py" for package in packages]
        beside = (self._root / packages[-1]).iterdir() if packages else ()
        return (
            file,
            *(init for init in inits if (self._root / init).is_file()),
            *(f"{packages[-1]}/{other.name}" for other in beside if other.suffix in PACKAGE_DATA),
        )

    def _read_imports(self, file: str) -> frozenset[str]:
        if not file.endswith(".py"):
            return frozenset()
        text = (self._root / file).read_text(encoding="utf-8")
        body = ast.parse(text, file).body
        found = {name for name in _imported(body, file.split("/")[:-1]) if name.split(".")[0] in PACKAGES}
        if "import_module" in text:
            found.update(self._imported_by_name(body))
        return frozenset(found)

    def _imported_by_name(self, body: list[ast.stmt]) -> Iterator[str]:
        for call in (node for statement in body for node in ast.walk(statement)):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            if ast.unparse(call.func).split(".")[-1] != "import_module":
                continue
            name = call.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)
            elif isinstance(name, ast.JoinedStr) and name.values and isinstance(name.values[0], ast.Constant):
                package = str(name.values[0].value).rstrip(".")
                if package.split(".")[0] in PACKAGES:
                    folder = self._root.joinpath(*package.split("."))
                    yield from (f"{package}.{file.stem}" for file in folder.glob("*.py"))


def _imported(body: list[ast.stmt], package: list[str]) -> Iterator[str]:
    """Every name that statements import, in their inner ones too: a module, or something in one."""
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imported(node.orelse, package)
        else:
            for inner in _bodies(node):
                yield from _imported(inner, package)


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The blocks of a compound statement; expressions import nothing."""
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, [])
        if isinstance(block, list):
            yield block
    for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield from _bodies(part)
