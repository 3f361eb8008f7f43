"""Outputs that somebody changed by hand: refused, or moved out of the way; never overwritten."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from flows.settings import STATE
from prefloop.errors import WorkspaceError

WHERE_TO_EDIT = {
    "data": "correct the data by importing it again (`prefloop data import`), or mend its importer",
    "models": "change what trains it: params.yaml, the data, or the code under prefloop/",
    "metrics": "figures follow from models and data: change those",
    "plots": "curves follow from models and data: change those",
    "reports": "the page follows from the figures; its template is in prefloop/",
}


def refuse(edited: Mapping[str, str]) -> None:
    """Refuses to run over outputs that exist nowhere else.

    Args:
        edited: path of the output -> stage that writes it.

    Raises:
        WorkspaceError: there are some; each is named, with where to make the change instead.
    """
    if not edited:
        return
    listed = "\n".join(f"    {path} (written by stage {stage})" for path, stage in edited.items())
    rooms = {path.split("/")[0] for path in edited}
    advice = "; ".join(WHERE_TO_EDIT[room] for room in sorted(rooms) if room in WHERE_TO_EDIT)
    raise WorkspaceError(
        f"these outputs were changed by hand, and running would overwrite them:\n{listed}",
        f"{advice or 'change what the stage reads'}. To go on, move them away yourself, or use "
        f"--force: it moves them to {STATE}/rescued",
    )


def rescue(root: Path, edited: Mapping[str, str]) -> dict[str, Path]:
    """Moves hand-edited outputs to .prefloop/rescued/; returns where each went."""
    folder = root / STATE / "rescued" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    moved = {}
    for path in edited:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / path, target)
        moved[path] = target.relative_to(root)
    return moved
