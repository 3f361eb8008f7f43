"""The closure of a module's imports, and what of it dvc.yaml leaves to runs/code.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.support.closure import Tree
from tasks.support.code import CODE, all_code, load_yaml, stage_module

ROOT = Path(__file__).parents[2]
STAGES = {name: stage.get("do", stage) for name, stage in load_yaml(ROOT / "dvc.yaml")["stages"].items()}
CODE_OF = all_code(ROOT)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "tasks/__init__.py": "",
            "tasks/dpo.py": "from prefloop.objectives import dpo\nimport torch\n",
            "tasks/ppo.py": "def main():\n    from prefloop.objectives.ppo import loss\n",
            "tasks/ingest.py": "import importlib\n\n\ndef read(name):\n"
            '    return importlib.import_module(f"prefloop.importers.{name}")\n',
            "tasks/report.py": "from prefloop.report.page import render\n",
            "prefloop/__init__.py": "",
            "prefloop/objectives/__init__.py": "",
            "prefloop/objectives/dpo.py": "from .logprobs import total\n",
            "prefloop/objectives/ppo.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
            "    from prefloop.objectives.dpo import loss\nelse:\n    from . import logprobs\n",
            "prefloop/objectives/logprobs.py": "",
            "prefloop/objectives/unused.py": "",
            "prefloop/importers/__init__.py": "",
            "prefloop/importers/hh.py": "",
            "prefloop/importers/csv.py": "",
            "prefloop/report/__init__.py": "",
            "prefloop/report/page.py": "",
            "prefloop/report/page.html": "",
        },
    )
    return tmp_path


PACKAGES = ["prefloop/__init__.py", "prefloop/objectives/__init__.py"]


def test_follows_modules_relative_imports_and_packages_on_the_way(tree: Path) -> None:
    expected = [*PACKAGES, "prefloop/objectives/dpo.py", "prefloop/objectives/logprobs.py"]
    assert Tree(tree).closure("tasks.dpo") == [*expected, "tasks/__init__.py", "tasks/dpo.py"]


def test_imports_in_functions_count_and_those_for_type_checkers_do_not(tree: Path) -> None:
    expected = [*PACKAGES, "prefloop/objectives/logprobs.py", "prefloop/objectives/ppo.py"]
    assert Tree(tree).closure("tasks.ppo") == [*expected, "tasks/__init__.py", "tasks/ppo.py"]


def test_an_import_by_name_brings_the_whole_package(tree: Path) -> None:
    assert {"prefloop/importers/hh.py", "prefloop/importers/csv.py"} <= set(
        Tree(tree).closure("tasks.ingest")
    )


def test_templates_beside_a_module_count(tree: Path) -> None:
    assert "prefloop/report/page.html" in Tree(tree).closure("tasks.report")


@pytest.mark.parametrize("line", ["if True:\n    {}", "try:\n    {}\nexcept E:\n    pass", "with x:\n    {}"])
def test_imports_in_blocks_count(tree: Path, line: str) -> None:
    write(tree, {"tasks/dpo.py": line.format("import prefloop.objectives.unused") + "\n"})
    assert "prefloop/objectives/unused.py" in Tree(tree).closure("tasks.dpo")


def test_imports_in_handlers_cases_and_else_count(tree: Path) -> None:
    text = "try:\n    x\nexcept E:\n    import prefloop.objectives.unused\n"
    write(tree, {"tasks/dpo.py": text})
    assert "prefloop/objectives/unused.py" in Tree(tree).closure("tasks.dpo")
    write(tree, {"tasks/dpo.py": "match x:\n    case 1:\n        import prefloop.objectives.unused\n"})
    assert "prefloop/objectives/unused.py" in Tree(tree).closure("tasks.dpo")
    write(tree, {"tasks/dpo.py": "for x in y:\n    pass\nelse:\n    import prefloop.objectives.unused\n"})
    assert "prefloop/objectives/unused.py" in Tree(tree).closure("tasks.dpo")


@pytest.mark.parametrize("name", [name for name in STAGES if name != "environment"])
def test_each_stage_reads_its_own_code_as_a_parameter_and_lists_none(name: str) -> None:
    body = STAGES[name]
    assert (ROOT / f"{stage_module(body['cmd']).replace('.', '/')}.py").exists()
    assert [entry[CODE] for entry in body["params"] if isinstance(entry, dict) and CODE in entry] == [[name]]
    assert not [dep for dep in body["deps"] if dep.startswith(("prefloop/", "tasks/"))]


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("prefloop/objectives/dpo.py", {"dpo", "online_dpo"}),
        ("prefloop/objectives/ppo.py", {"ppo", "grpo", "rloo", "reinforce"}),
        ("prefloop/objectives/kto.py", {"kto"}),
        ("prefloop/training/ppo.py", {"ppo"}),
        ("prefloop/objectives/bradley_terry.py", {"reward", "judge"}),
    ],
)
def test_editing_an_objective_touches_its_stages_alone(file: str, stages: set[str]) -> None:
    touched = {name for name, code in CODE_OF.items() if file in code.files}
    assert (ROOT / file).exists()
    assert touched == stages
