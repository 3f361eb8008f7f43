"""Where ingest takes rows from: the embedded world, imported versions, a data set on the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from prefloop.config.ingest import HubConfig, WorldConfig
from prefloop.data.importing import Version, convert_records
from prefloop.data.readers import Record
from prefloop.data.records import Row
from prefloop.errors import DataError
from prefloop.files import atomic_folder, read_jsonl
from prefloop.world import build
from prefloop.world.facts import World


@dataclass(frozen=True)
class Source:
    """Rows by kind, to be read as often as needed.

    Attributes:
        name: for messages and counts.
        kinds: a reader for each kind that the source holds.
        synthetic: True for the embedded world, whose kinds are complete: nothing is derived from it.
    """

    name: str
    kinds: Mapping[str, Callable[[], Iterator[Row]]]
    synthetic: bool = False

    def rows(self, kind: str) -> Iterator[Row]:
        """Yields the rows of a kind; none if the source has none."""
        reader = self.kinds.get(kind)
        return reader() if reader else iter(())


def from_world(config: WorldConfig, seed: int) -> Source:
    """The embedded help desk of a seed."""
    world = World.make(seed)
    readers: dict[str, Callable[[], Iterator[Row]]] = {
        "text": lambda: build.pretraining(world, config.documents, seed),
        "demonstrations": lambda: build.demonstrations(world, config.demonstrations, seed),
        "preferences": lambda: build.preferences(
            world, config.preferences, config.completions, seed, config.preference_kinds or None
        ),
        "prompts": _kept(lambda: build.prompts(world, config.prompts, seed, config.prompt_kinds or None)),
        "evaluation": _kept(lambda: build.evaluation(world, config.evaluation, config.harmful, seed)),
    }
    return Source("world", readers, synthetic=True)


def _kept(make: Callable[[], Iterator[Row]]) -> Callable[[], Iterator[Row]]:
    """A reader that makes its rows once: these kinds are small and read twice."""
    rows = cache(lambda: list(make()))
    return lambda: iter(rows())


def from_version(version: Version) -> Source:
    """One import under data/sources/."""
    return from_folder(version.name, version.folder)


def from_folder(name: str, folder: Path) -> Source:
    """A folder with one JSON Lines file a kind."""
    files = sorted(folder.glob("*.jsonl"))
    return Source(name, {file.stem: _reader(file) for file in files})


def _reader(file: Path) -> Callable[[], Iterator[Row]]:
    return lambda: read_jsonl(file)


def from_hub(config: HubConfig, folder: Path) -> Source:
    """A data set of the hub, streamed into `folder` (a scratch folder of the caller's).

    Raises:
        DataError: no network, no such data set, or a part of it cannot be read.
    """
    target = folder / "hub"
    with atomic_folder(target) as draft, ExitStack() as stack:
        handles: dict[str, TextIO] = {}
        for kind, row in convert_records(config.format, _hub_records(config), config.name, {}):
            if kind == "empty":
                continue
            if kind not in handles:
                handles[kind] = stack.enter_context(open(draft / f"{kind}.jsonl", "w", encoding="utf-8"))
            handles[kind].write(json.dumps(row, ensure_ascii=False) + "\n")
    return from_folder(config.name, target)


def _hub_records(config: HubConfig) -> Iterator[Record]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise DataError(
            f"data set {config.name} needs the hub, but HF_HUB_OFFLINE is set",
            "unset it, or download the files elsewhere and import them: prefloop data import FORMAT FILE...",
        )
    try:
        from datasets import load_dataset

        rows: Any = load_dataset(config.name, config.config or None, split=config.split, streaming=True)
        for number, value in enumerate(islice(rows, config.rows or None), start=1):
            yield Record(number, value)
    except ImportError as error:
        raise DataError("reading from the hub needs the package datasets", "pip install datasets") from error
    except Exception as error:
        raise DataError(
            f"data set {config.name} ({config.split}) could not be read from the hub: {error}",
            "check its name, your network and, for gated sets, `hf auth login`; or import downloaded files: "
            "prefloop data import FORMAT FILE...",
        ) from error
