"""A stage's code dependencies: the closure of its imports, kept in dvc.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.support.closure import bodies, closure, main, stage_module, with_closure

ROOT = Path(__file__).parents[2]
PIPELINE = YAML(typ="safe").load(ROOT / "dvc.yaml")


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
    assert closure("tasks.dpo", tree) == [*expected, "tasks/__init__.py", "tasks/dpo.py"]


def test_imports_in_functions_count_and_those_for_type_checkers_do_not(tree: Path) -> None:
    expected = [*PACKAGES, "prefloop/objectives/logprobs.py", "prefloop/objectives/ppo.py"]
    assert closure("tasks.ppo", tree) == [*expected, "tasks/__init__.py", "tasks/ppo.py"]


def test_an_import_by_name_brings_the_whole_package(tree: Path) -> None:
    assert {"prefloop/importers/hh.py", "prefloop/importers/csv.py"} <= set(closure("tasks.ingest", tree))


def test_templates_beside_a_module_count(tree: Path) -> None:
    assert "prefloop/report/page.html" in closure("tasks.report", tree)


def test_code_comes_after_data_and_old_code_goes(tree: Path) -> None:
    deps = with_closure(["models/sft", "prefloop/objectives/unused.py", "data/x.jsonl"], "tasks.dpo", tree)
    assert deps[:2] == ["models/sft", "data/x.jsonl"]
    assert "prefloop/objectives/unused.py" not in deps
    assert "tasks/dpo.py" in deps


def test_writing_keeps_comments(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tree, {"dvc.yaml": "stages:\n  # Direct preferences.\n  dpo:\n    cmd: python -m tasks.dpo\n"})
    monkeypatch.chdir(tree)
    monkeypatch.setattr("sys.argv", ["closure"])
    assert main() == 1
    monkeypatch.setattr("sys.argv", ["closure", "--write"])
    assert main() == 0
    text = (tree / "dvc.yaml").read_text()
    assert "# Direct preferences." in text
    assert "      - prefloop/objectives/dpo.py\n" in text
    monkeypatch.setattr("sys.argv", ["closure"])
    assert main() == 0


@pytest.mark.parametrize("name", [name for name, _ in bodies(PIPELINE)])
def test_dvc_yaml_lists_each_stages_code(name: str) -> None:
    body = dict(bodies(PIPELINE))[name]
    module = stage_module(body["cmd"])
    assert (ROOT / f"{module.replace('.', '/')}.py").exists()
    expected = with_closure(list(body.get("deps", [])), module, ROOT)
    assert list(body.get("deps", [])) == expected, "run: python -m tasks.support.closure --write"


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
    touched = {name for name, body in bodies(PIPELINE) if file in body.get("deps", [])}
    assert (ROOT / file).exists()
    assert touched == stages
