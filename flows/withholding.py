"""Which credentials of the environment a stage's command gets: those that it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

from flows.credentials import HUB, STORES, without
from prefloop.config.read import read_yaml
from prefloop.errors import PrefloopError
from tasks.support.delivery_process import pipeline_delivers

_OURS: Final = re.compile(r"python -m tasks\.")


def withhold(stage: str, command: str, variables: MutableMapping[str, str], root: Path = Path(".")) -> None:
    """Leaves a stage's command, in its environment, the credentials that it needs; a command that is not
    prefloop's own keeps all but the orders."""
    without(variables)
    if not _OURS.match(command):
        return
    try:
        params = read_yaml(root / "params.yaml")
    except (PrefloopError, OSError):
        return  # the stage will say what is wrong with it
    if not loads_from_hub(stage, params):
        without(variables, HUB)
    if pipeline_delivers(variables):
        without(variables, STORES)


def loads_from_hub(stage: str, params: Mapping[str, Any]) -> bool:
    """True for a stage that may fetch a model, tokenizer or data set of the hub.

    A model whose own code is trusted may fetch that code wherever the model is loaded.
    """
    name = stage.partition("@")[0]
    section = _section(params, name)
    if _section(params, "compute").get("trust_remote_code"):
        return True
    if name == "ingest":
        return section.get("source") == "hub"
    key = {"base": "model", "reward": "base", "judge": "base", "validate": "tokenizer"}.get(name)
    source = str(section.get(key) or "") if key else ""
    return bool(source) and not (key == "base" and source in ("sft", "base")) and not Path(source).exists()


def _section(params: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = params.get(name)
    return section if isinstance(section, Mapping) else {}
