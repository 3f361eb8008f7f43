"""The stage environment: what results depend on besides code, data and parameters."""

from __future__ import annotations

from prefloop.config.compute import ComputeConfig
from prefloop.config.read import read_section
from prefloop.files import write_json
from prefloop.training.environment import resolve
from tasks.support.ending import ended_well
from tasks.support.signals import StopFlag


def main() -> None:
    """Writes runs/environment.json; runs each time, and changes the file only if something changed."""
    with ended_well("environment", StopFlag()):
        write_json("runs/environment.json", resolve(read_section("compute", ComputeConfig)).to_dict())


if __name__ == "__main__":
    main()
