"""Reward models trained one after another, as one training that can stop and resume anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefloop.config.reward import RewardConfig
from prefloop.data.comparisons import Ranking
from prefloop.models.adapters import merge
from prefloop.models.reward_model import RewardModel
from prefloop.training.checkpoints import Checkpoints, load_trainable, trainable_state
from prefloop.training.recorder import Recorder
from prefloop.training.reward import EncodedRanking, encode_rankings, fit_reward_model, ordered, steps_of


class MemberRecorder:
    """Reports a member's steps after those of the members before it.

    Args:
        recorder: of the whole training. done, total: steps before this member, and of all members.
        quiet: the whole training goes on in this process, so there is nothing to resume.
    """

    def __init__(self, recorder: Recorder, done: int, total: int, quiet: bool) -> None:
        self.recorder, self.done, self.total, self.quiet = recorder, done, total, quiet

    def log(self, step: int, total: int, values: Mapping[str, float]) -> None:
        self.recorder.log(self.done + step, self.total, values)

    def resume(self, step: int) -> None:
        if not self.quiet:
            self.recorder.resume(self.done + step)

    def checkpoint(self, step: int, folder: Path) -> None:
        self.recorder.checkpoint(self.done + step, folder)

    def say(self, text: str) -> None:
        self.recorder.say(text)

    def stop_requested(self) -> bool:
        return self.recorder.stop_requested()


def fit_ensemble(
    make: Callable[[int], RewardModel],
    rankings: Sequence[Ranking],
    config: RewardConfig,
    *,
    seed: int,
    checkpoints: Checkpoints,
    recorder: Recorder,
    what: str = "reward",
) -> tuple[RewardModel, dict[str, Any]]:
    """Trains what the section asks for: one model (with a head a member, on a shared trunk) or several.

    Args:
        make: gives the untrained model of a member, adapters attached; called once a member, in order.
        checkpoints: of the first member; the others' stand in folders of the same name within.

    Returns:
        One model, adapters merged, of all members; and what `train` says, for the stage's figures.

    Raises:
        DataError: no ranking orders anything. ModelError: a checkpoint is of another shape.
        StopRequested: asked to end; a checkpoint was saved.
    """
    count = 1 if config.ensemble.share_trunk else config.ensemble.members
    rows: list[EncodedRanking] = []
    trained: list[RewardModel] = []
    outcome: dict[str, Any] = {}
    begun = False
    for member in range(count):
        model, last = make(member), member == count - 1
        # Every member has the tokenizer of the first.
        rows = rows or ordered(encode_rankings(model, rankings, config.max_length))
        steps = steps_of(rows, config)
        own = checkpoints
        if member:
            own = Checkpoints(checkpoints.folder / f"member-{member}", checkpoints.every_seconds)
            if begun:
                # What a later member did before an earlier one began anew is no longer in the curve.
                shutil.rmtree(own.folder, ignore_errors=True)
        found = None if begun or last else own.latest()
        if found and found[0] == steps:
            load_trainable(model.model, found[1]["module"], what)
        else:
            outcome |= fit_reward_model(
                model,
                rows,
                config,
                seed=seed,
                checkpoints=own,
                recorder=MemberRecorder(recorder, member * steps, count * steps, begun),
                what=what,
                member=member,
            )
            begun = True
            if not last:
                own.save(steps, {"module": trainable_state(model.model)})
        model.model = merge(model.model)
        trained.append(model.eval())
    first = trained[0]
    others = [model.model for model in trained[1:]]
    model = RewardModel(first.model, first.tokenizer, others=others, precision=first.precision).eval()
    return model, outcome
