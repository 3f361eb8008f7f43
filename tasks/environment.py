"""The stage environment: what results depend on besides data and parameters."""

from __future__ import annotations

from prefloop.config.compute import ComputeConfig
from prefloop.config.policies import check_names
from prefloop.config.read import read_section, read_yaml
from prefloop.files import write_json
from prefloop.training.environment import resolve
from tasks.support.code import write_code
from tasks.support.ending import ended_well
from tasks.support.signals import StopFlag


def main() -> None:
    """Writes runs/environment.json and runs/code.json; runs each time, and changes them only if something
    changed.

    It also is the first stage of a bare `dvc repro`, which writes names of policies into shell commands.
    """
    with ended_well("environment", StopFlag()):
        check_names(read_yaml("params.yaml"))
        write_code()
        write_json("runs/environment.json", resolve(read_section("compute", ComputeConfig)).to_dict())


if __name__ == "__main__":
    main()
