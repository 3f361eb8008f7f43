"""Stage ingest: rows from the embedded world, imported files or the hub into data/raw/, one file a kind."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.ingest import IngestConfig
from prefloop.data.assembling import assemble
from prefloop.data.importing import versions
from prefloop.data.sources import Source, from_hub, from_version, from_world
from tasks.support.stage import Stage

RAW = Path("data/raw")


def sources_of(config: IngestConfig, seed: int, scratch: Path) -> list[Source]:
    """The sources that `ingest.source` names, oldest first; imported versions always come last."""
    imported = [from_version(version) for version in versions()]
    if config.source == "world":
        return [from_world(config.world, seed), *imported]
    if config.source == "hub":
        return [from_hub(config.hub, scratch), *imported]
    return imported


def main() -> None:
    with Stage.open("ingest", IngestConfig) as stage:
        counts = assemble(sources_of(stage.config, stage.seed, stage.scratch), stage.config, RAW)
        stage.metrics(counts)
        for name, kinds in counts["sources"].items():
            for kind, fates in kinds.items():
                held = fates.get("held_out_rl", 0) + fates.get("held_out_evaluation", 0)
                note = f", {held} held out (their prompts are for RL or evaluation)" if held else ""
                stage.say(f"{name}: {fates['in']} {kind}{note}")


if __name__ == "__main__":
    main()
