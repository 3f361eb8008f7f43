"""`python -m flows.dvc_process ARGUMENTS`: DVC's command line, with quicker ways to read and write YAML.

At each stage's end DVC reads and writes all of dvc.lock in pure Python, so that comments would survive; there
are none. Here libyaml does it. The content is the same; so are the
bytes, but for null, which DVC leaves out, and where it breaks scalars longer than a line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc import dvcfile
from dvc.cli import main
from dvc.stage import run
from dvc.stage.run import prepare_kwargs
from dvc.utils.serialize import modify_yaml
from ruamel.yaml import YAML

from flows.credentials import without
from flows.parameter_files import parse_once
from flows.withholding import withhold
from prefloop.files import atomic_file

if TYPE_CHECKING:
    from dvc.stage import Stage


@contextmanager
def modify(path: str, fs: Any = None) -> Iterator[dict[str, Any]]:
    """Yields the content of a YAML file and writes it back; for what is no dvc.lock, as DVC does it."""
    if Path(path).name != "dvc.lock":
        with modify_yaml(path, fs=fs) as data:
            yield data
        return
    yaml: Any = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.allow_unicode = True
    yaml.sort_base_mapping_type_on_output = False
    file = Path(path)
    lock = (yaml.load(file.read_text(encoding="utf-8")) if file.exists() else None) or {}
    yield lock
    with atomic_file(file) as handle:
        yaml.dump(_plain(lock), handle)


def _plain(value: Any) -> Any:
    """DVC hands over mappings and lists of its own kinds, which a safe dumper refuses."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def command_variables(stage: Stage, run_env: dict[str, str] | None = None) -> dict[str, Any]:
    """What DVC gives a stage's command, with those credentials alone that the stage needs. DVC itself keeps
    the storage's: it brings inputs and results."""
    how: dict[str, Any] = prepare_kwargs(stage, run_env)
    withhold(stage.addressing, str(stage.cmd), how["env"])
    return how


if __name__ == "__main__":
    without(os.environ)
    dvcfile.modify_yaml = modify
    run.prepare_kwargs = command_variables
    parse_once()
    sys.exit(main(sys.argv[1:]))
