"""Workspaces without work: a chain of idle stages, and the real pipeline with stand-ins for what it makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workspaces import ROOT, clone_project, environment
from prefloop.config.read import read_yaml


def chain(stages: int) -> dict[str, Any]:
    """The content of a dvc.yaml: our stage `environment`, and idle stages that each read the one before."""
    found: dict[str, Any] = {"environment": read_yaml(ROOT / "dvc.yaml")["stages"]["environment"]}
    for number in range(1, stages + 1):
        name = f"idle{number}"
        found[name] = {
            "cmd": f"python -m tasks.idle {name}",
            "params": ["seed", {"runs/environment.json": None}, {"runs/code.json": [name]}],
            "outs": [f"idle/{name}.txt", f"runs/{name}.json"],
        }
        if number > 1:
            found[name]["deps"] = [f"idle/idle{number - 1}.txt"]
    return {"stages": found}


def make_chain(folder: Path, stages: int) -> None:
    """A workspace whose pipeline is a chain of idle stages; nothing ran in it yet."""
    folder.mkdir(parents=True)
    clone_project(folder)
    shutil.copy2(ROOT / "benchmarks/overhead/idle.py", folder / "tasks/idle.py")
    (folder / "idle").mkdir()
    (folder / ".gitignore").write_text((ROOT / ".gitignore").read_text() + "/idle/\n", encoding="utf-8")
    (folder / "dvc.yaml").write_text(yaml.safe_dump(chain(stages), sort_keys=False), encoding="utf-8")


def make_finished(folder: Path) -> None:
    """The real pipeline, up to date: DVC has committed stand-ins as the stages' outputs.

    Without tasks/promote.py, as no decision follows from stand-ins.
    """
    folder.mkdir(parents=True)
    clone_project(folder)
    (folder / "tasks/promote.py").unlink()
    python(folder, "tasks.environment")
    listed = "import json; from pathlib import Path; from flows.planning.planner import *\n"
    listed += "outs = [o.def_path for s in pipeline_stages(open_repo(Path('.'))) for o in s.outs]\n"
    listed += "print(json.dumps(outs))"
    done = subprocess.run(
        [sys.executable, "-c", listed],
        cwd=folder,
        env=environment(folder),
        check=True,
        capture_output=True,
        text=True,
    )
    for name in json.loads(done.stdout.splitlines()[-1]):
        path = folder / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.startswith("models/"):
            path.mkdir()
            path = path / "model.safetensors"
        path.write_text(json.dumps({"stands for": name}), encoding="utf-8")
    python(folder, "dvc", "commit", "-f", "-q")


def python(folder: Path, *arguments: str) -> None:
    """Runs a module in a workspace; exits where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment(folder, PREFLOOP_TRACKING="off"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
