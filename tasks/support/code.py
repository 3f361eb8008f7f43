"""The code that a stage's results follow from, as a parameter: runs/code.json holds a fingerprint a stage.

The stage `environment` writes that file anew each time; the other stages name their key of it in dvc.yaml. So
a list of files need be kept nowhere, and yet an edit re-runs what it touches. One run is made by one state of
the code: a stage that DVC starts refuses to run when its files were edited since.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from prefloop.config.read import LOADER
from prefloop.errors import WorkspaceError
from prefloop.files import read_json, sha256_file, sha256_text, write_json
from tasks.support.closure import PACKAGES, Tree
from tasks.support.process import DVC_STAGE

CODE = "runs/code.json"


@dataclass(frozen=True)
class Code:
    """What a module and all that it imports read like.

    Attributes:
        files: hex SHA-256 of each file, by POSIX path.
    """

    files: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over paths and contents, of which 32 hex digits fit on a line of dvc.lock."""
        text = "".join(f"{path}\0{digest}\n" for path, digest in sorted(self.files.items()))
        return sha256_text(text)[:32]

    def record(self) -> dict[str, Any]:
        """As runs/<stage>.json keeps it: enough to name the files that differ later."""
        return {"fingerprint": self.fingerprint, "files": dict(self.files)}


def all_code(root: Path = Path(".")) -> dict[str, Code]:
    """The code of every stage of dvc.yaml that runs a module of ours; a `foreach` counts once."""
    tree = Tree(root)
    hashes: dict[str, str] = {}
    found = {}
    for stage, module in _modules(root).items():
        files = tree.closure(module)
        for file in files:
            if file not in hashes:
                hashes[file] = sha256_file(root / file)
        found[stage] = Code({file: hashes[file] for file in files})
    return found


def stage_code(stage: str, root: Path = Path(".")) -> Code | None:
    """The code of one stage ("sft", "evaluate@ppo"); None where dvc.yaml does not name the module."""
    module = _modules(root).get(stage.partition("@")[0])
    if module is None:
        return None
    return Code({file: sha256_file(root / file) for file in Tree(root).closure(module)})


def write_code(root: Path = Path(".")) -> None:
    """Writes runs/code.json."""
    write_json(root / CODE, {stage: code.fingerprint for stage, code in all_code(root).items()})


def confirm(stage: str, code: Code | None) -> None:
    """Makes sure that what DVC will record of a stage it starts is the code that runs.

    Raises:
        WorkspaceError: a file was edited since runs/code.json was written.
    """
    if DVC_STAGE not in os.environ or code is None or not Path(CODE).exists():
        return
    if read_json(CODE).get(stage.partition("@")[0]) not in (None, code.fingerprint):
        raise WorkspaceError(
            f"the code of stage {stage} was edited since this run began: one state of it makes a whole run",
            "run again: what is done stays, and the plan says what the edit touches",
        )


def keep(stage: str, code: Code | None) -> None:
    """Puts a stage's fingerprint back where somebody had runs/code.json written anew while the stage ran: DVC
    records at the stage's end what it finds there."""
    if DVC_STAGE not in os.environ or code is None or not Path(CODE).exists():
        return
    group = stage.partition("@")[0]
    values = read_json(CODE)
    if values.get(group) not in (None, code.fingerprint):
        write_json(CODE, {**values, group: code.fingerprint})


def stage_module(command: str) -> str:
    """The module of ours that a command runs, `python -m tasks.sft` or `python tasks/sft.py`; "" for none."""
    words = shlex.split(command)
    if "-m" in words[:-1]:
        name = words[words.index("-m") + 1]
    else:
        name = next((word[:-3].replace("/", ".") for word in words[1:2] if word.endswith(".py")), "")
    return name if name.split(".")[0] in PACKAGES else ""


def load_yaml(path: Path) -> Any:
    """A YAML file as plain values, {} for an empty one."""
    return parse_yaml(path.read_text(encoding="utf-8"))


def parse_yaml(text: str) -> Any:
    """The same of a text."""
    return yaml.load(text, LOADER) or {}


def _modules(root: Path) -> dict[str, str]:
    """Stage -> module, as dvc.yaml at the root has them; a `foreach` counts once."""
    path = root / "dvc.yaml"
    if not path.exists():
        return {}
    stages = load_yaml(path).get("stages", {})
    modules = {
        name: stage_module(str(stage.get("do", stage).get("cmd", ""))) for name, stage in stages.items()
    }
    return {name: module for name, module in modules.items() if module}
