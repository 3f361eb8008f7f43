"""From sources to one file a kind, every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from prefloop.config.ingest import IngestConfig
from prefloop.data.records import (
    DERIVING,
    HELD_OUT,
    KINDS,
    Messages,
    Row,
    content_id,
    key_of,
    normalised_prompt,
    parse_row,
)
from prefloop.data.selecting import Selection, selection
from prefloop.data.sources import Source
from prefloop.data.splitting import Plan, make_plan, prompt_of
from prefloop.data.transcripts import compact
from prefloop.errors import DataError
from prefloop.files import atomic_file

_FATES: Final = {"judge": "held_out_judge", "rl": "held_out_rl", "evaluation": "held_out_evaluation"}
_PROVENANCE: Final = ("source", "line")


def assemble(sources: Sequence[Source], config: IngestConfig, folder: Path) -> dict[str, Any]:
    """Writes `folder`/KIND.jsonl for each kind, empty where there is no row.

    Args:
        sources: oldest first; with `derive` "first", sources added at the end change no derived row.
        config: shares, and what is derived.
        folder: data/raw.

    Returns:
        {"rows": {kind: n}, "sources": {name: {kind: {fate: n}}}, "derived": {kind: n}, "left_out": {kind:
        n}}; the fates of a kind add up to `in`: used, judge, held_out_rl, held_out_evaluation,
        held_out_judge, invalid.

    Raises:
        DataError: no source has rows, or rows went missing on the way (a defect).
    """
    if not sources:
        raise DataError(
            "data/sources/ holds no imported version", "import files: prefloop data import FORMAT FILE..."
        )
    folder.mkdir(parents=True, exist_ok=True)
    plan = make_plan(sources, config)
    with ExitStack() as stack:
        chosen = {kind: stack.enter_context(selection(folder, config.max_rows)) for kind in KINDS}
        limit = min(filter(None, (config.evaluation, config.max_rows)), default=0)
        derived = {kind: stack.enter_context(selection(folder, config.max_rows)) for kind in KINDS}
        derived["evaluation"] = stack.enter_context(selection(folder, limit))
        writer = _Assembly(plan, chosen, derived)
        for position, source in enumerate(sources):
            writer.take(position, source)
        rows, given, left_out = {}, {}, {}
        for kind in KINDS:
            with atomic_file(folder / f"{kind}.jsonl") as target:
                given[kind] = derived[kind].write(target)
                rows[kind] = given[kind] + chosen[kind].write(target)
            left_out[kind] = len(derived[kind]) + len(chosen[kind]) - rows[kind]
    return {"rows": rows, "sources": writer.report(), "derived": given, "left_out": left_out}


def derived_ids(kind: str, row: Row) -> set[str]:
    """Ids of the rows of other kinds that may have been made from a row: a demonstration, a transcript, a
    prompt."""
    if kind not in (*DERIVING, "held_out") or prompt_of(row) is None:
        return set()
    made = [made for _, made in _derived_rows(kind, row, frozenset({"demonstrations"}))]
    return {str(one["id"]) for one in (*made, _with_id({"prompt": row["prompt"]}, row))}


class _Assembly:
    """Sends each row where it belongs, and counts."""

    def __init__(self, plan: Plan, chosen: Mapping[str, Selection], derived: Mapping[str, Selection]) -> None:
        self.plan, self.chosen, self.derived = plan, chosen, derived
        self.counts: dict[str, dict[str, Counter[str]]] = {}
        self._seen: dict[str, set[int]] = {kind: set() for kind in HELD_OUT}

    def take(self, position: int, source: Source) -> None:
        """Distributes the rows of one source."""
        deriving = position in self.plan.derivers
        counts = self.counts.setdefault(source.name, {})
        for kind in source.kinds:
            fates = counts.setdefault(kind, Counter())
            for row in source.rows(kind):
                fates["in"] += 1
                fates[self._row(kind, row, source, deriving)] += 1

    def report(self) -> dict[str, dict[str, dict[str, int]]]:
        """Counts by source and kind. Raises DataError if a row has no fate."""
        for name, kinds in self.counts.items():
            for kind, fates in kinds.items():
                if fates["in"] != sum(count for fate, count in fates.items() if fate != "in"):
                    raise DataError(f"{name}: of {fates['in']} {kind} rows some went missing: {dict(fates)}")
        return {name: {kind: dict(f) for kind, f in kinds.items()} for name, kinds in self.counts.items()}

    def _row(self, kind: str, row: Row, source: Source, deriving: bool) -> str:
        """Puts one row away; returns its fate."""
        if kind == "text":
            self.chosen["text"].add(row, key_of(str(row.get("text"))))
            return "invalid" if "invalid" in row else "used"
        if kind not in KINDS:
            raise DataError(f"{source.name}: {kind}.jsonl is no kind of row", f"use {', '.join(KINDS)}")
        prompt = prompt_of(row)
        if prompt is None:
            self.chosen[kind].add(row, 0)
            return "invalid"
        key = key_of(normalised_prompt(prompt))
        if kind in HELD_OUT:
            reason = self.plan.refusal(kind, prompt)
            self.chosen[kind].add(_refused(row, reason) if reason else row, key)
            return "invalid" if reason else "used"
        return self._fitting(kind, row, prompt, key, deriving and kind in DERIVING and not source.synthetic)

    def _fitting(self, kind: str, row: Row, prompt: Messages, key: int, deriving: bool) -> str:
        place = self.plan.place(prompt)
        if place.taken:
            self.chosen[kind].add(_refused(row, f"prompt also in {place.taken}"), key)
            return "invalid"
        # The judge has to be independent of labels, too, and fits comparisons alone.
        if place.use in ("rl", "evaluation") or (kind == "unpaired" and place.use == "judge"):
            if deriving:
                self._derive_prompt("prompts" if place.use == "rl" else "evaluation", row, key)
            self.chosen["held_out"].add(row, key)
            return _FATES[place.use]
        if deriving:
            for derived_kind, derived_row in _derived_rows(kind, row, self.plan.derived):
                self.derived[derived_kind].add(derived_row, key)
        if kind == "preferences" and place.use == "judge":
            self.chosen["judge"].add(row, key)
            return "judge"
        self.chosen[kind].add(row, key)
        return "used"

    def _derive_prompt(self, kind: str, row: Row, key: int) -> None:
        if kind in self.plan.derived and key not in self._seen[kind]:
            self._seen[kind].add(key)
            self.derived[kind].add(_with_id({"prompt": row["prompt"]}, row), key)


def _derived_rows(kind: str, row: Row, derived: frozenset[str]) -> Iterator[tuple[str, Row]]:
    """What a row to be fitted on also gives: a demonstration, and a transcript to pre-train on."""
    if row.get("both_bad") or row.get("skipped"):
        return
    try:
        example = parse_row(kind, row)
    except ValueError:
        return
    best = example.completions[example.ranks.index(min(example.ranks)) if example.ranks else 0]
    if kind != "demonstrations" and "demonstrations" in derived:
        answer = {"prompt": row["prompt"], "completion": compact(best, "assistant")}
        yield "demonstrations", _with_id(answer, row)
    turns = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in (*example.prompt, *best))
    yield "text", _with_id({"text": turns}, row)


def _with_id(made: Row, origin: Row) -> Row:
    return {"id": content_id(made), **made, **{key: origin[key] for key in _PROVENANCE if key in origin}}


def _refused(row: Row, reason: str) -> Row:
    return {"invalid": reason, "raw": row, **{key: row[key] for key in _PROVENANCE if key in row}}
