"""The stages that train policies: one a named entry of `policies` in params.yaml."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TypeVar

from prefloop.config.policies import read_policy
from prefloop.errors import ConfigError
from tasks.support.stage import Stage

C = TypeVar("C")


def open_policy(method: str, config: type[C]) -> AbstractContextManager[Stage[C]]:
    """Runs the block as the stage METHOD@NAME, `Stage.part` being the policy's name.

    The command line gives the name, `python -m tasks.ppo ppo-loose`; without one it is the method's.

    Args:
        method: group of dvc.yaml and section of params.yaml.
        config: dataclass of that section; the policy's entry is laid over it.

    Raises:
        SystemExit: more than one name.
    """
    if len(sys.argv) > 2:
        error = ConfigError(f"tasks.{method} takes one policy", f"python -m tasks.{method} {method}")
        raise SystemExit(str(error))
    name = sys.argv[1] if len(sys.argv) > 1 else method
    return Stage.run(method, name, lambda: read_policy(method, name, config))
