"""A stage's code against that of its last run: fingerprints as DVC compares them, and files for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.planning.model import Reason
from prefloop.errors import DataError
from prefloop.files import read_json, write_json
from tasks.support.code import CODE, Code, all_code
from tasks.support.workspace import slug

if TYPE_CHECKING:
    from dvc.dependency.param import ParamsDependency

ACCEPTED = "accepted_code"
"""In a stage's record: the code for which its results were taken over, beside the code that made them."""


class CodeNow:
    """The code as it stands, whatever runs/code.json says of an earlier moment."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._code = all_code(root)

    def read_params(self, dep: ParamsDependency) -> dict[str, Any]:
        """What the stage environment would leave to be read there."""
        values: dict[str, Any] = dep.read_params()
        if str(dep.def_path) == CODE:
            values |= {key: self._code[key].fingerprint for key in dep.params if key in self._code}
        return values

    def reasons(self, stage: str, dep: ParamsDependency) -> list[Reason]:
        """The files that differ from those of the stage's last run; the code as a whole where nothing kept
        them."""
        before = dep.hash_info.value if dep.hash_info else None
        reasons: list[Reason] = []
        for key, fingerprint in self.read_params(dep).items():
            known = before.get(key) if isinstance(before, Mapping) else None
            if known is None:
                what = "was recorded file by file, now as one fingerprint: the stage runs once more"
                reasons.append(Reason("code", "its code", None, what))
            elif known != fingerprint:
                reasons += self._changed_files(stage, key, known) or [
                    Reason("code", "its code", None, "changed")
                ]
        return reasons

    def take_over(self, stage: str) -> None:
        """Notes in a stage's record that its results stand for the code as it is now."""
        path = self._root / "runs" / f"{slug(stage)}.json"
        code = self._code.get(stage.partition("@")[0])
        if code is not None and path.exists():
            write_json(path, {**read_json(path), ACCEPTED: code.record()})

    def _changed_files(self, stage: str, key: str, fingerprint: str) -> list[Reason]:
        now = self._code[key].files if key in self._code else {}
        before = self._recorded(stage, fingerprint)
        if before is None:
            return []
        words = {(True, True): "changed", (False, True): "is new", (True, False): "is no longer read"}
        return [
            Reason("code", file, None, words[file in before, file in now])
            for file in sorted({*before, *now})
            if before.get(file) != now.get(file)
        ]

    def _recorded(self, stage: str, fingerprint: str) -> Mapping[str, str] | None:
        """The files of a fingerprint, from the stage's record."""
        try:
            record = read_json(self._root / "runs" / f"{slug(stage)}.json")
        except DataError:
            return None
        for kept in (record.get("code"), record.get(ACCEPTED)) if isinstance(record, Mapping) else ():
            if kept and Code(kept["files"]).fingerprint == fingerprint:
                return dict(kept["files"])
        return None
