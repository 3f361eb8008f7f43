"""Who scores the answers: the optimised reward model, the independent judge and, where one exists, gold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prefloop.errors import DataError
from prefloop.evaluation.answering import Sampled, Setting
from prefloop.evaluation.answers import Answers, EvaluationPrompt
from prefloop.evaluation.gold_judge import gold_scores, refused
from prefloop.files import read_json
from prefloop.models.reward_model import RewardModel
from prefloop.world.facts import World

WORLD_SOURCE = "world"


@dataclass(frozen=True)
class Judges:
    """Everybody who scores.

    Attributes:
        reward: the reward model that policies were optimised against.
        independent: a reward model fitted on other prompts, or None where gold decides.
        world: the embedded world, or None where no gold judge exists.
        batch_size: conversations scored at once.
    """

    reward: RewardModel
    independent: RewardModel | None
    world: World | None
    batch_size: int

    @classmethod
    def load(cls, models: Path, prompts: Sequence[EvaluationPrompt], setting: Setting) -> Judges:
        """Reads models/reward and models/judge; gold exists where every prompt comes from the embedded world.

        Raises:
            DataError: the judge is gold, and a prompt comes from elsewhere.
        """
        outsider = next((prompt for prompt in prompts if prompt.source != WORLD_SOURCE), None)
        kind = read_json(models / "judge" / "judge.json")["kind"]
        if kind == "gold" and outsider is not None:
            raise DataError(
                f"gold cannot judge evaluation prompt {outsider.id!r}, from {outsider.source or 'a file'}",
                "set judge.kind to reward_model and ingest.judge_share above 0, "
                "or leave prompts from elsewhere out of evaluation",
            )
        device, precision = setting.environment.device, setting.environment.precision
        return cls(
            RewardModel.load(models / "reward", device=device, precision=precision),
            None
            if kind == "gold"
            else RewardModel.load(models / "judge", device=device, precision=precision),
            World.make(setting.seed) if outsider is None else None,
            setting.config.batch_size,
        )

    def scored(self, sampled: Sampled, prompts: Sequence[EvaluationPrompt]) -> Answers:
        """Answers with every judge's score."""
        texts, ended = sampled.rollouts.texts, np.array(sampled.rollouts.ended, dtype=np.bool_)
        gold = None if self.world is None else gold_scores(self.world, prompts, texts, ended)
        if self.independent is not None:
            judge, name = self._asked(self.independent, prompts, texts), "reward_model"
        else:
            assert gold is not None, "load lets gold judge its own world alone"
            judge, name = gold, "gold"
        return Answers(
            policy=sampled.policy,
            prompts=tuple(prompts),
            texts=tuple(texts),
            lengths=np.array([len(ids) for ids in sampled.rollouts.completion_ids], dtype=np.int64),
            ended=ended,
            log_ratio=sampled.log_ratio,
            reward=self._asked(self.reward, prompts, texts),
            judge=judge,
            judge_name=name,
            gold=gold,
            refused=None if self.world is None else refused(prompts, texts),
        )

    def _asked(
        self, model: RewardModel, prompts: Sequence[EvaluationPrompt], texts: Sequence[str]
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        scores = model.score([prompt.prompt for prompt in prompts], texts, self.batch_size)
        return np.asarray(scores.double().numpy(), dtype=np.float64)
