"""`python -m tasks.export MODEL`: a trained policy as a folder that other programs serve."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import get_args

from transformers.utils.logging import disable_progress_bar

from prefloop.models.exporting import Precision, Target, export_model
from tasks.support.ending import ended_well
from tasks.support.models import find_model
from tasks.support.signals import StopFlag


def main() -> None:
    """Exports, checks what was written by loading it back, and prints the folder."""
    parser = argparse.ArgumentParser(prog="prefloop export", description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--for", dest="target", choices=get_args(Target), default="transformers")
    parser.add_argument("--dtype", choices=get_args(Precision), default="float32")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with ended_well("export", StopFlag()):
        disable_progress_bar()
        source = find_model(arguments.model)
        folder = arguments.out or Path("exports") / f"{source.name}-{arguments.target}"
        export_model(source, folder, arguments.target, arguments.dtype)
        if arguments.json:
            print(
                json.dumps(
                    {
                        "folder": str(folder),
                        "for": arguments.target,
                        "files": sorted(p.name for p in folder.iterdir()),
                    }
                )
            )
        else:
            print(f"{folder}: written, and loaded back to the same model")
            print(f"  {folder / 'README.md'} has the command that serves it")


if __name__ == "__main__":
    main()
