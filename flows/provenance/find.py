"""From the name that a person has for a model to the run that made it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from prefloop.config.parse import nearest
from prefloop.errors import ModelError
from tasks.support.lineage import Lineage, Making
from tasks.support.workspace import slug

_VERSION = re.compile(r"(?:models:/)?(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


def find_making(lineage: Lineage, name: str) -> Making:
    """The run that made a model.

    Args:
        name: a folder ("models/ppo") or its name, a stage ("ppo@ppo"), or a registered version
            ("prefloop-policy/3", "prefloop-policy@champion").

    Raises:
        ModelError: there is no such model, or nothing here remembers how it was made.
    """
    current = [making for making in lineage.current if making.model]
    path = PurePosixPath(name).as_posix()
    for making in current:
        if path in (making.model, making.stage, making.name, slug(making.stage)):
            return making
    asked = _VERSION.fullmatch(name)
    if asked and asked["name"] not in {making.group for making in current}:
        return _registered(lineage, name, asked)
    known = [making.name for making in current]
    if not known:
        raise ModelError(f"there is no model {name}: dvc.lock has none", "prefloop run trains them")
    hint = nearest(PurePosixPath(name).name, known).replace("known keys", "models")
    raise ModelError(f"there is no model {name} in dvc.lock", hint)


def _registered(lineage: Lineage, name: str, asked: re.Match[str]) -> Making:
    from tasks.support.registered import find_version

    version = find_version(asked["name"], version=asked["version"] or "", alias=asked["alias"] or "")
    if version is None:
        raise ModelError(
            f"the registry has no model {name}", "prefloop status, or the registry's page: make ui"
        )
    making = lineage.with_key(version.key)
    if making is None:
        raise ModelError(
            f"{name} (version {version.version}, stage {version.stage}) was not made here, or what made it "
            f"is forgotten: neither dvc.lock nor DVC's run-cache has the stage key {version.key[:12]}",
            "ask in the workspace that made it, or fetch its memory: dvc fetch --run-cache",
        )
    return making
