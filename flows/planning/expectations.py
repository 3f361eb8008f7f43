"""Outputs that a stage will write again as they are, where that can be told before it runs.

What is said here decides nothing: a stage that is expected to stay is still put before DVC when the run comes
to it. It makes a plan say more than "may run".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from flows.planning.model import Reason
from prefloop.data.records import HELD_OUT, KINDS
from prefloop.files import read_json

SOURCES = "data/sources"
LEAKS = "metrics/validate-leaks.json"


def expected_outputs(
    root: Path, stage: str, reasons: Iterable[Reason], params: Mapping[str, Any]
) -> Set[str]:
    """Paths of outputs that `stage` will write as they are now, relative to `root`.

    Args:
        reasons: why the stage runs; empty where what it reads may change.
        params: the parameters that it reads.
    """
    causes = {(reason.kind, reason.subject) for reason in reasons}
    if stage == "ingest" and causes == {("data", SOURCES)}:
        return _kept_by_additions(root, params["ingest"])
    if stage == "validate-leaks" and causes <= {("data", SOURCES)}:
        # A prompt on two sides stops the run, so a run that goes on finds none, as the last one did.
        return {LEAKS}
    return frozenset()


def _kept_by_additions(root: Path, ingest: Mapping[str, Any]) -> Set[str]:
    """Files of data/raw that versions added after all others leave as they are."""
    counts = root / "metrics/ingest.json"
    if not counts.exists():
        return frozenset()
    before = set(read_json(counts)["sources"])
    versions = sorted(folder.name for folder in (root / SOURCES).iterdir() if folder.is_dir())
    known = [name for name in versions if name in before]
    added = versions[len(known) :]
    if not added or versions[: len(known)] != known or (not known and ingest["source"] != "world"):
        return frozenset()
    kinds = {file.stem for name in added for file in (root / SOURCES / name).glob("*.jsonl")}
    if kinds & set(HELD_OUT) or ingest["derive"] == "all":
        return frozenset()  # named prompts take theirs from other kinds; every source gives demonstrations
    changed = {"held_out", *kinds}
    if "preferences" in kinds:
        changed.add("judge")
    return {f"data/raw/{kind}.jsonl" for kind in KINDS if kind not in changed}
