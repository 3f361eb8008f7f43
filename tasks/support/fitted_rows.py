"""Which rows a stage's training takes from its files, and what for: what the stages do, without a model.

Every choice is made by the functions by which the stages make it: splits by prompt, what orders a comparison,
which rows the steps of a training draw. Nothing is estimated; where only the training knew (a batch that was
filled up with further prompts, inner epochs that ended early), all that it may have taken is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefloop.config.base import BaseConfig
from prefloop.config.groups import GroupConfig
from prefloop.config.judge import JudgeConfig
from prefloop.config.kto import KTOConfig
from prefloop.config.on_policy import OnPolicyConfig
from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.config.params import METHODS
from prefloop.config.parse import parse
from prefloop.config.ppo import PPOConfig
from prefloop.config.rejection import RejectionConfig
from prefloop.config.reward import RewardConfig
from prefloop.config.sft import SFTConfig
from prefloop.data.batching import Order, steps_in
from prefloop.data.comparisons import rankings
from prefloop.data.holdout import split_holdout
from prefloop.data.unpaired import unpaired
from prefloop.training.looks import apart
from prefloop.training.noise import Key, permutation
from prefloop.training.selection import hold_out
from tasks.support.reads import (
    CHOSE,
    FITTED,
    HELD_OUT,
    NORMALISED,
    NOT_DRAWN,
    SAMPLED,
    UNUSED,
    section_of,
)

Row = dict[str, Any]
Use = tuple[str, int, str]
"""A file, the row's 0-based position in it, and what the row was for (see `tasks.support.reads`)."""

VALIDATED = "data/validated/{}.jsonl"
PREFERENCES, UNPAIRED = VALIDATED.format("preferences"), VALIDATED.format("unpaired")
PROMPTS, DEMONSTRATIONS = VALIDATED.format("prompts"), VALIDATED.format("demonstrations")
PLACE = "prefloop place"


def row_uses(
    group: str, part: str, parameters: Mapping[str, Any], read: Callable[[str], Sequence[Row]]
) -> Iterator[Use]:
    """What a stage did with each row that it looked at.

    Args:
        group, part: the stage: ("ppo", "ppo-loose").
        parameters: what it read of params.yaml.
        read: gives the rows of one of its files.

    Raises:
        ConfigError: its section has knobs that this version of prefloop does not know.
    """
    section, seed = section_of(group, part, parameters), int(parameters.get("seed", 0))
    if group == "base":
        if not parse(BaseConfig, section, "base").model:
            # Its tokenizer is trained on every document, whichever blocks of tokens are held out.
            text = VALIDATED.format("text")
            yield from ((text, place, FITTED) for place in range(len(read(text))))
    elif group == "sft":
        yield from _sft(parse(SFTConfig, section, group), seed, read)
    elif group == "reward":
        yield from _reward(parse(RewardConfig, section, group), group, PREFERENCES, seed, read)
    elif group == "judge":
        judge = parse(JudgeConfig, section, group)
        if judge.kind != "gold":
            yield from _reward(judge, group, VALIDATED.format("judge"), seed, read)
    elif group == "kto":
        yield from _kto(parse(KTOConfig, section, group), seed, read)
    elif group == "rejection":
        yield from _rejection(parse(RejectionConfig, section, group), seed, read)
    elif group in METHODS:
        config = parse(METHODS[group], section, group)
        if isinstance(config, OnPolicyConfig):
            yield from _on_policy(config, group, seed, read)
        else:
            yield from _pairwise(config, group, seed, read)


def _sft(config: SFTConfig, seed: int, read: Callable[[str], Sequence[Row]]) -> Iterator[Use]:
    rows, held = split_holdout(_placed(read(DEMONSTRATIONS)), config.holdout, "sft")
    drawn = _drawn(len(rows), config.batch_size, config.epochs, config.steps, (seed, "sft"))
    yield from _fitted(DEMONSTRATIONS, rows, drawn)
    yield from _all(DEMONSTRATIONS, held, HELD_OUT)


def _reward(
    config: RewardConfig, what: str, file: str, seed: int, read: Callable[[str], Sequence[Row]]
) -> Iterator[Use]:
    rows, held = split_holdout(_placed(read(file)), config.holdout, "reward")
    ordered, unused = _ordering(rows)
    drawn: set[int] = set()
    for member in range(1 if config.ensemble.share_trunk else config.ensemble.members):
        key: Key = (seed, what, "member", member) if member else (seed, what)
        drawn |= _drawn(len(ordered), config.batch_size, config.epochs, config.steps, key)
    yield from _fitted(file, ordered, drawn)
    yield from _all(file, unused, UNUSED)
    yield from _all(file, held, HELD_OUT)
    count = len(read(PROMPTS))
    asked = permutation((seed, what, "normalise"), count)[: config.normalise_prompts]
    yield from ((PROMPTS, place, NORMALISED) for place in sorted(asked))


def _pairwise(config: Any, what: str, seed: int, read: Callable[[str], Sequence[Row]]) -> Iterator[Use]:
    rows, held = split_holdout(_placed(read(PREFERENCES)), config.holdout, "dpo")
    ordered, unused = _ordering(rows)
    drawn = _drawn(len(ordered), config.batch_size, config.epochs, config.steps, (seed, what))
    yield from _fitted(PREFERENCES, ordered, drawn)
    yield from _all(PREFERENCES, unused, UNUSED)
    yield from _all(PREFERENCES, held, HELD_OUT)


def _kto(config: KTOConfig, seed: int, read: Callable[[str], Sequence[Row]]) -> Iterator[Use]:
    files = {"comparisons": [PREFERENCES], "labels": [UNPAIRED], "auto": [PREFERENCES, UNPAIRED]}[config.data]
    placed = [{**row, PLACE: (file, place)} for file in files for place, row in enumerate(read(file))]
    rows, held = split_holdout(placed, config.holdout, "dpo")
    origin = [row for row in rows for _ in unpaired([row])[0]]  # a row a completion
    drawn = _drawn(len(origin), config.batch_size, config.epochs, config.steps, (seed, "kto"))
    fitted = {origin[i][PLACE] for i in drawn}
    marked = {row[PLACE] for row in origin}
    for row in rows:
        place = row[PLACE]
        yield (*place, FITTED if place in fitted else NOT_DRAWN if place in marked else UNUSED)
    yield from ((*row[PLACE], HELD_OUT) for row in held)


def _on_policy(
    config: OnPolicyConfig, what: str, seed: int, read: Callable[[str], Sequence[Row]]
) -> Iterator[Use]:
    key = (seed, what)
    prompts, held = hold_out(_placed(read(PROMPTS)), config, key)
    group = config.group_size if isinstance(config, GroupConfig) else 1
    order = Order(len(prompts), config.batch_size // group, key)
    steps = [order.step(step) for step in range(config.steps)]
    drawn = {i for chosen in steps for i in chosen}
    if isinstance(config, GroupConfig) and config.resample_limit:
        drawn = set(range(len(prompts)))  # which groups told nothing, and were replaced, the training knew
    yield from _fitted(PROMPTS, prompts, drawn, SAMPLED)
    yield from _all(PROMPTS, held, CHOSE)
    if config.ptx_coef:
        count = len(read(DEMONSTRATIONS))
        shown = _shown(config, key, count, [len(chosen) * group for chosen in steps])
        yield from ((DEMONSTRATIONS, i, FITTED if i in shown else NOT_DRAWN) for i in range(count))


def _shown(config: OnPolicyConfig, key: Key, count: int, units: Sequence[int]) -> set[int]:
    """Demonstrations beside the updates of PPO-ptx.

    Args:
        units: of each step, what its minibatches divide: completions, or pairs of them.
    """
    first = config.critic_warmup_steps if isinstance(config, PPOConfig) else 0
    size = config.batch_size // config.minibatches
    together = 2 if isinstance(config, OnlineDPOConfig) else 1
    shown: set[int] = set()
    for step in range(first, config.steps):
        for epoch in range(config.inner_epochs):
            for number, start in enumerate(range(0, units[step], size)):
                update = epoch * config.minibatches + number
                order = permutation((*key, step, "ptx", update), count)
                shown.update(order[: min(size, units[step] - start) * together])
    return shown


def _rejection(config: RejectionConfig, seed: int, read: Callable[[str], Sequence[Row]]) -> Iterator[Use]:
    rows = _placed(read(PROMPTS))
    prompts, held = apart(rows, min(config.look_prompts, len(rows) // 4), (seed, "looks"))
    drawn: set[int] = set()
    for number in range(config.rounds):
        key: Key = (seed, "rejection", "round", number)
        drawn |= _drawn(len(prompts), config.batch_size, config.epochs, config.steps, key)
    yield from _fitted(PROMPTS, prompts, drawn)
    yield from _all(PROMPTS, held, HELD_OUT)


def _placed(rows: Iterable[Row]) -> list[Row]:
    """Rows that carry their place in the file."""
    return [{**row, PLACE: place} for place, row in enumerate(rows)]


def _ordering(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Comparisons that order something, and those that do not."""
    kept: list[Row] = []
    unused: list[Row] = []
    for row in rows:
        (kept if rankings([row])[0] else unused).append(row)
    return kept, unused


def _drawn(count: int, batch_size: int, epochs: int, steps: int, key: Key) -> set[int]:
    """Indices of the rows that are in a step of a training; every epoch but a last short one has them all."""
    order = Order(count, batch_size, key)
    total = steps_in(count, batch_size, epochs, steps)
    if total >= order.per_epoch:
        return set(range(count))
    return {i for step in range(total) for i in order.step(step)}


def _fitted(
    file: str, rows: Sequence[Mapping[str, Any]], drawn: set[int], use: str = FITTED
) -> Iterator[Use]:
    return ((file, row[PLACE], use if i in drawn else NOT_DRAWN) for i, row in enumerate(rows))


def _all(file: str, rows: Iterable[Mapping[str, Any]], use: str) -> Iterator[Use]:
    return ((file, row[PLACE], use) for row in rows)
