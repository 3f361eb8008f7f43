"""A row that somebody asks to remove: where it is, and which models have seen it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.provenance.rows import VALIDATED, Training, follow, row_id
from prefloop.data.assembling import derived_ids
from prefloop.errors import ConfigError, DataError
from prefloop.files import read_jsonl
from tasks.support.lineage import DATA, SOURCES, Lineage, Making
from tasks.support.reads import SEEN
from tasks.support.registered import Registered

RAW = f"{DATA}raw/"
QUARANTINE = f"{DATA}quarantine/"


@dataclass(frozen=True)
class Sighting:
    """What one model has to do with one row.

    Attributes:
        seen: None where it cannot be said.
        why: how it saw the row, or why it did not.
        through: models that it descends from and that saw the row.
    """

    making: Making
    seen: bool | None
    why: str
    through: tuple[str, ...] = ()


@dataclass
class RowFound:
    """One row.

    Attributes:
        places: file and line of each data file that has it, or a row that was made from it.
        ids: its id, and those of rows that were made from it.
    """

    id: str
    places: dict[str, int] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    sightings: list[Sighting] = field(default_factory=list)


def read_ids(rows: Iterable[str], file: Path | None) -> list[str]:
    """Ids as they were given, and those in a file: one a line, or JSON rows with an `id`.

    Raises:
        ConfigError: no id at all. DataError: the file is missing, or a row in it has no id.
    """
    ids = [row for row in rows if row]
    if file is not None:
        if not file.is_file():
            raise DataError(f"{file} is missing", "name a file with an id a line")
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if line.strip():
                ids.append(_id_in(line.strip(), f"{file}, line {number}"))
    if not ids:
        raise ConfigError("no row was named", "for example: prefloop trace --row ID")
    return list(dict.fromkeys(ids))


def who_saw(lineage: Lineage, ids: Collection[str]) -> list[RowFound]:
    """Every row with what each model has to do with it.

    Raises:
        DataError: no data file that can be read has a row of an id.
    """
    found = {id_: RowFound(id_, ids={id_}) for id_ in ids}
    unread = _locate(lineage, found)
    strangers = [row.id for row in found.values() if not row.places]
    if strangers:
        gone = f" that can still be read ({len(unread)} cannot)" if unread else ""
        raise DataError(
            f"no data file{gone} has a row with the id {', '.join(strangers)}",
            "ids stand in data/raw/*.jsonl; prefloop trace MODEL --rows lists those of a model",
        )
    models = lineage.models()
    places = _places(lineage, models, found.values())
    reading = [
        making for making in models if any(places.get(file) or file not in places for file in _files(making))
    ]
    trainings = {id(training.making): training for training in follow(lineage, reading)}
    for row in found.values():
        direct = {id(making): _direct(making, trainings.get(id(making)), places, row) for making in models}
        row.sightings = [_with_parents(lineage, making, direct) for making in models]
    return list(found.values())


def as_json(
    rows: Iterable[RowFound], keys: Mapping[int, str], versions: Iterable[Registered]
) -> dict[str, Any]:
    """The answer as plain values.

    Args:
        keys: stage key of each run, by `id` of its making. versions: of the registry.
    """
    versions = list(versions)
    known = set(keys.values())
    return {
        "rows": [
            {
                "id": row.id,
                "places": [{"file": file, "line": line} for file, line in row.places.items()],
                "made_from_it": sorted(row.ids - {row.id}),
                "models": [
                    {
                        "path": one.making.model,
                        "hash": one.making.outs[one.making.model],
                        "stage": one.making.stage,
                        "key": keys[id(one.making)],
                        "current": one.making.current,
                        "registered": [str(v) for v in versions if v.key == keys[id(one.making)]],
                        "seen": one.seen,
                        "why": one.why,
                        "through": list(one.through),
                    }
                    for one in row.sightings
                ],
            }
            for row in rows
        ],
        "registered_and_forgotten": [str(version) for version in versions if version.key not in known],
    }


def _id_in(line: str, where: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is neither an id nor a JSON row: {error.msg}", "write an id a line"
        ) from error
    return row_id(value)["id"]


def _locate(lineage: Lineage, found: Mapping[str, RowFound]) -> list[str]:
    """Notes where rows stand, and which rows were made from them; returns files that are no longer here."""
    files: dict[Path, str] = {}
    unread = []
    for path, digest in {out for making in lineage.every() for out in making.outs.items()}:
        if path.startswith((RAW, VALIDATED, QUARANTINE)):
            file = lineage.objects.find(digest, path)
            if file is None:
                unread.append(path)
            else:
                files[file] = path
    for file in (lineage.root / SOURCES).glob("*/*.jsonl"):
        files[file] = file.relative_to(lineage.root).as_posix()
    in_order = sorted(files.items(), key=lambda item: (item[1], item[0]))
    owners = {id_: [row] for id_, row in found.items()}
    made = _look_into(in_order, owners)
    made_from: dict[str, list[RowFound]] = {}
    for id_, ids in made.items():
        for other in ids - {id_}:
            made_from.setdefault(other, []).append(found[id_])
    if made_from:
        for other in _look_into(in_order, made_from):
            for row in made_from[other]:
                row.ids.add(other)
    return unread


def _look_into(
    files: Iterable[tuple[Path, str]], owners: Mapping[str, Collection[RowFound]]
) -> dict[str, set[str]]:
    """Notes the place of each row that is owned; returns by id what may have been made from those found."""
    made: dict[str, set[str]] = {}
    for file, path in files:
        for line, row in enumerate(read_jsonl(file), start=1):
            inner = row.get("row") if path.startswith(QUARANTINE) else row
            inner = inner.get("raw") if isinstance(inner, Mapping) and "invalid" in inner else inner
            if isinstance(inner, Mapping) and (id_ := row_id(inner)["id"]) in owners:
                for owner in owners[id_]:
                    owner.places.setdefault(path, line)
                made.setdefault(id_, set()).update(derived_ids(Path(path).stem, dict(inner)))
    return made


def _files(making: Making) -> list[str]:
    """What rows could be read from, as keys of `_places`."""
    return [f"{path} {digest}" for path, digest in making.deps.items() if path.startswith(VALIDATED)]


def _places(
    lineage: Lineage, models: Iterable[Making], rows: Iterable[RowFound]
) -> dict[str, dict[str, list[int]]]:
    """Version of a validated file -> id -> 0-based positions; one that is no longer here is left out."""
    wanted = {id_ for row in rows for id_ in row.ids}
    found: dict[str, dict[str, list[int]]] = {}
    gone = set()
    for making in models:
        for key in _files(making):
            if key in found or key in gone:
                continue
            path, _, digest = key.rpartition(" ")
            file = lineage.objects.find(digest, path)
            if file is None:
                gone.add(key)
                continue
            found[key] = {}
            for place, row in enumerate(read_jsonl(file)):
                if (id_ := row_id(row)["id"]) in wanted:
                    found[key].setdefault(id_, []).append(place)
    return found


def _direct(
    making: Making,
    training: Training | None,
    places: Mapping[str, Mapping[str, list[int]]],
    row: RowFound,
) -> Sighting:
    """What the training itself did with the row, its parents left aside."""
    if training is None:
        return Sighting(making, False, "it is in nothing that the stage read")
    if training.unknown:
        return Sighting(making, None, training.unknown)
    uses = list(_uses(making, training, places, row))
    other = " (as the code of today chooses: the stage's own was another)" if training.other_code else ""
    if seen := [use for use in uses if use in SEEN]:
        return Sighting(making, True, ", ".join(dict.fromkeys(seen)) + other)
    if uses:
        return Sighting(making, False, ", ".join(dict.fromkeys(uses)) + other)
    return Sighting(making, False, "it is in nothing that the stage took rows of")


def _uses(
    making: Making, training: Training, places: Mapping[str, Mapping[str, list[int]]], row: RowFound
) -> Iterator[str]:
    for path, uses in training.uses.items():
        standing = places.get(f"{path} {making.deps[path]}", {})
        wanted = {place for id_ in row.ids for place in standing.get(id_, ())}
        yield from (use for use, positions in uses.items() if wanted & set(positions))


def _with_parents(lineage: Lineage, making: Making, direct: Mapping[int, Sighting]) -> Sighting:
    own = direct[id(making)]
    above = [direct[id(one)] for one in lineage.ancestors(making) if one.model and id(one) in direct]
    through = tuple(dict.fromkeys(one.making.model for one in above if one.seen))
    if own.seen or through:
        return Sighting(making, True, own.why if own.seen else "", through)
    forgotten = [path for path in lineage.missing_parents(making) if path.startswith("models/")]
    doubtful = [f"{one.making.model}: {one.why}" for one in (own, *above) if one.seen is None]
    doubtful += [f"nothing here remembers what made {path}" for path in forgotten]
    if doubtful:
        return Sighting(making, None, "; ".join(doubtful))
    return own
