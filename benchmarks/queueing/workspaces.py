"""A workspace in the shape of the real one whose stages do no work, and clones of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from benchmarks.overhead.idle_pipeline import python
from benchmarks.workspaces import ROOT, clone_project, environment
from prefloop.config.read import read_yaml

READS = {
    "ingest": ("data/sources",),
    "sft": ("data/raw/rows.txt",),
    "reward": ("models/sft",),
    "ppo": ("models/sft", "models/reward"),
    "dpo": ("models/sft",),
    "report": ("models/ppo", "models/dpo"),
}
"""Stage -> what it reads."""


def pipeline() -> dict[str, Any]:
    """The content of dvc.yaml."""
    stages: dict[str, Any] = {"environment": read_yaml(ROOT / "dvc.yaml")["stages"]["environment"]}
    stages["environment"]["cmd"] = "python -m tasks.light environment"
    for name, reads in READS.items():
        stages[name] = {
            "cmd": " ".join(["python -m tasks.light", name, *reads]),
            "deps": list(reads),
            "params": ["seed", name, {"runs/environment.json": None}, {"runs/code.json": [name]}],
            "outs": [_output(name), f"runs/{name}.json"],
        }
    return {"stages": stages}


def make_workspace(folder: Path) -> None:
    """All stages ran once, by a bare `dvc repro`; nothing waits for MLflow.

    Without tasks/promote.py, as no decision follows from stages without work.
    """
    folder.mkdir(parents=True)
    clone_project(folder)
    (folder / "tasks/promote.py").unlink()
    shutil.copy2(ROOT / "benchmarks/queueing/light.py", folder / "tasks/light.py")
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline(), sort_keys=False), encoding="utf-8")
    add_rows(folder, 0)
    name = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for words in (("add", "-A"), (*name, "commit", "-q", "-m", "light stages")):
        subprocess.run(["git", *words], cwd=folder, check=True, env=environment(folder))
    (folder / ".prefloop").mkdir(exist_ok=True)
    python(folder, "dvc", "repro", "-q")
    for left in ("spool", "pipelines", "witness.jsonl", "history.jsonl"):
        path = folder / ".prefloop" / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_clones(template: Path, folder: Path, count: int) -> list[Path]:
    """Workspaces of their own, each with its repository, its DVC cache and its state."""
    clones = [folder / f"workspace-{number}" for number in range(1, count + 1)]
    for clone in clones:
        shutil.copytree(template, clone, symlinks=True)
    return clones


def add_rows(workspace: Path, batch: int) -> None:
    """New data, whole or not at all, as a pull brings it."""
    target = workspace / f"data/sources/batch-{batch}.txt"
    draft = target.with_name(f".{target.name}")
    draft.write_text(f"rows of batch {batch}\n", encoding="utf-8")
    os.replace(draft, target)


def _output(stage: str) -> str:
    return {"ingest": "data/raw/rows.txt", "report": "reports/report.html"}.get(stage, f"models/{stage}")
