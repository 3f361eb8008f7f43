"""What a stage's module does not import before it works: seconds that every start of the stage would pay."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SERVICES = (
    "mlflow", "dvc", "prefect", "great_expectations", "pandas", "datasets", "matplotlib", "sklearn", "peft",
)  # fmt: skip
MODELS = ("torch", "transformers")
WITHOUT_MODELS = ("deliver", "environment", "ingest", "promote", "report", "validate_leaks")
WITH_MODELS = (
    "base", "dpo", "evaluate", "grpo", "kto", "looks", "online_dpo", "ppo", "rejection", "reward", "sft",
)  # fmt: skip

SAY = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(list(sys.modules)))
"""


def imported(root: Path, *modules: str) -> set[str]:
    """Packages that a new process holds when it has imported the modules."""
    done = subprocess.run(
        [sys.executable, "-c", SAY, *modules], cwd=root, capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_stages_without_a_model_start_without_torch(repository: Path) -> None:
    names = [f"tasks.{stage}" for stage in WITHOUT_MODELS]
    assert imported(repository, *names).isdisjoint((*MODELS, *SERVICES))


def test_stages_with_a_model_start_without_servers_and_tools(repository: Path) -> None:
    names = [f"tasks.{stage}" for stage in WITH_MODELS]
    assert imported(repository, *names).isdisjoint(SERVICES)


def test_a_run_leaves_heavy_imports_to_the_warm_process(repository: Path) -> None:
    assert imported(repository, "flows.run").isdisjoint((*MODELS, "great_expectations", "pandas"))
