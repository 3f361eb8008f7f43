"""Where rows come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefloop.config.parse import at_least, between, hub_name


@dataclass(frozen=True)
class WorldConfig:
    """Sizes of the embedded help desk.

    Attributes:
        documents: pre-training documents.
        demonstrations: rows to imitate.
        preferences: prompts with ranked completions.
        completions: completions a ranked prompt (K).
        prompts: prompts for reinforcement learning.
        evaluation: held-out prompts in the world's shares.
        harmful: held-out harmful prompts besides.
        preference_kinds, prompt_kinds: relative weight of each prompt kind among comparisons and among RL
            prompts; empty takes the world's shares. Evaluation always has the world's shares.
    """

    documents: int = 20000
    demonstrations: int = 3000
    preferences: int = 2000
    completions: int = 4
    prompts: int = 2000
    evaluation: int = 500
    harmful: int = 300
    preference_kinds: dict[str, float] = field(default_factory=dict)
    prompt_kinds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("documents", "demonstrations", "preferences", "prompts", "evaluation"):
            at_least(name, getattr(self, name), 1)
        at_least("completions", self.completions, 2)
        at_least("harmful", self.harmful, 0)


@dataclass(frozen=True)
class HubConfig:
    """A preference set on the hub (needs a network).

    Attributes:
        name: data set id, NAME or OWNER/NAME. config, split: as `datasets.load_dataset` takes them.
        format: importer that reads its rows; `prefloop data import --help` lists them.
        rows: at most this many rows; 0 takes all.
    """

    name: str = ""
    config: str = ""
    split: str = "train"
    format: str = "trl"
    rows: int = 0

    def __post_init__(self) -> None:
        hub_name("hub.name", self.name)


@dataclass(frozen=True)
class IngestConfig:
    """Section `ingest`.

    Attributes:
        source: "world" (the embedded help desk, plus comparisons in data/sources), "files" (data/sources
            alone) or "hub" (`hub`, plus data/sources).
        derive: what a comparison also gives when a kind has no source of its own: demonstrations (the chosen
            reply), prompts for RL and evaluation prompts. "first" derives from the first imported version
            alone, so that comparisons added later neither re-run SFT nor move the evaluation set; "all" from
            every one.
        fit_share, rl_share: shares of prompts, by a hash of the prompt; the rest is for evaluation.
        judge_share: share of fitting prompts whose comparisons train the independent judge alone; 0 where a
            gold judge exists.
        evaluation: evaluation prompts at most (count); the set is frozen with the first version.
        text: file patterns imported as pre-training text when they match, e.g. books by chapter.
        max_rows: rows at most of each kind; 0 takes all (the hash of the prompt decides which).
        world, hub: the sources' own settings.
    """

    source: Literal["world", "files", "hub"] = "world"
    derive: Literal["first", "all"] = "first"
    fit_share: float = 0.7
    rl_share: float = 0.2
    judge_share: float = 0.0
    evaluation: int = 500
    text: list[str] = field(default_factory=list)
    max_rows: int = 0
    world: WorldConfig = field(default_factory=WorldConfig)
    hub: HubConfig = field(default_factory=HubConfig)

    def __post_init__(self) -> None:
        between("fit_share", self.fit_share, 0, 1)
        between("rl_share", self.rl_share, 0, 1)
        between("judge_share", self.judge_share, 0, 0.9)
        if self.fit_share + self.rl_share >= 1:
            raise ValueError(
                f"fit_share {self.fit_share} + rl_share {self.rl_share} leaves no prompts for evaluation"
            )
        if self.source == "hub" and not self.hub.name:
            raise ValueError("source is hub, but hub.name is empty")
