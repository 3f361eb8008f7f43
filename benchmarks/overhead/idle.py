"""A stage that does nothing, with all that surrounds one; a workspace of the benchmark has it in tasks/."""

from __future__ import annotations

import sys
from pathlib import Path

from prefloop.config.validate import ValidateConfig
from tasks.support.stage import Stage


def main() -> None:
    """Writes idle/STAGE.txt."""
    name = sys.argv[1]
    with (
        Stage.open(name, ValidateConfig, section="validate") as stage,
        stage.output_file(Path(f"idle/{name}.txt")) as handle,
    ):
        handle.write(name)


if __name__ == "__main__":
    main()
