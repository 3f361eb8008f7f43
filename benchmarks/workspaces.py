"""Copies of the project to work in, and commands in them, with the interpreter that runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("PREFECT", "DVC", "PREFLOOP")


def copy_project(folder: Path) -> None:
    """Every file that git tracks, as it stands now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)


def clone_project(folder: Path) -> None:
    """The same, with a history of one commit: what a fresh clone is to git and DVC."""
    copy_project(folder)
    name = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for words in (("init", "-q"), ("add", "-A"), (*name, "commit", "-q", "-m", "as it stands")):
        subprocess.run(["git", *words], cwd=folder, check=True, env=environment(folder))


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Of a command in a copy: its own code, this interpreter as `python`, no network, no outer run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    fixed = {"PYTHONPATH": str(folder), "PATH": path, "GIT_CONFIG_GLOBAL": os.devnull}
    return {**kept, **fixed, "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1", **extra}
