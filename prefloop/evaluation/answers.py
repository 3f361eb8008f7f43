"""What a policy answered to the evaluation prompts, and what every judge thought of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prefloop.errors import DataError
from prefloop.evaluation.intervals import Floats, rounded

MAIN: Final = "main"
HARMFUL: Final = "harmful"


@dataclass(frozen=True, slots=True)
class EvaluationPrompt:
    """One held-out prompt.

    Attributes:
        id: stable name of the row.
        prompt: text, or messages {"role", "content"}.
        kind: what sort of prompt it is; the source's name where the row does not say.
        panel: "main" for the figures, "harmful" for refusals alone.
        source: where the row came from; "world" is the embedded help desk.
        meta: what a gold judge needs to know.
    """

    id: str
    prompt: str | list[dict[str, str]]
    kind: str
    panel: str = MAIN
    source: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> EvaluationPrompt:
        """Reads a row of data/validated/evaluation.jsonl."""
        meta = row.get("meta") or {}
        source = str(row.get("source") or "")
        kind = str(meta.get("kind") or source or "all")
        return cls(str(row["id"]), row["prompt"], kind, str(meta.get("panel", MAIN)), source, meta)


@dataclass(frozen=True, eq=False)
class Answers:
    """One answer a prompt; every array has shape (N,).

    Attributes:
        policy: name of the policy that answered.
        prompts, texts: the N prompts and answers.
        lengths: tokens, the end token included (int64).
        ended: the answer ended by itself, inside the limit of tokens (bool).
        log_ratio: log pi(answer) - log sft(answer), summed over tokens (float64, nats).
        reward: normalised score of the reward model that was optimised (float64).
        judge: score of the independent judge (float64).
        judge_name: who that is: "gold" or "reward_model" (fitted on other prompts, never optimised against).
        gold: gold's score (float64), or None where no gold judge exists.
        refused: the answer is a refusal (bool), or None where nothing can tell.
    """

    policy: str
    prompts: tuple[EvaluationPrompt, ...]
    texts: tuple[str, ...]
    lengths: NDArray[np.int64]
    ended: NDArray[np.bool_]
    log_ratio: Floats
    reward: Floats
    judge: Floats
    judge_name: str
    gold: Floats | None = None
    refused: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        scores = (self.log_ratio, self.reward, self.judge, self.gold)
        columns: tuple[Sequence[Any] | NDArray[Any] | None, ...] = (
            self.texts,
            self.lengths,
            self.ended,
            self.refused,
            *scores,
        )
        if any(column is not None and len(column) != len(self.prompts) for column in columns):
            raise ValueError(f"answers of {self.policy} do not match its {len(self.prompts)} prompts")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Prompt kinds in alphabetical order."""
        return tuple(sorted({prompt.kind for prompt in self.prompts}))

    def where(self, *, panel: str | None = None, kind: str | None = None) -> Answers:
        """The answers to the prompts of one panel, one kind, or both."""
        return self.take(
            [
                i
                for i, prompt in enumerate(self.prompts)
                if (panel is None or prompt.panel == panel) and (kind is None or prompt.kind == kind)
            ]
        )

    def take(self, indices: Sequence[int]) -> Answers:
        """The answers at `indices`, in that order."""
        index = np.asarray(indices, dtype=np.int64)
        return Answers(
            policy=self.policy,
            prompts=tuple(self.prompts[i] for i in indices),
            texts=tuple(self.texts[i] for i in indices),
            lengths=self.lengths[index],
            ended=self.ended[index],
            log_ratio=self.log_ratio[index],
            reward=self.reward[index],
            judge=self.judge[index],
            judge_name=self.judge_name,
            gold=None if self.gold is None else self.gold[index],
            refused=None if self.refused is None else self.refused[index],
        )

    def rows(self) -> Iterable[dict[str, Any]]:
        """One JSON row an answer, with its scores."""
        for i, prompt in enumerate(self.prompts):
            yield {
                "id": prompt.id,
                "prompt": prompt.prompt,
                "kind": prompt.kind,
                "panel": prompt.panel,
                "response": self.texts[i],
                "tokens": int(self.lengths[i]),
                "ended": bool(self.ended[i]),
                "log_ratio": rounded(self.log_ratio[i]),
                "reward": rounded(self.reward[i]),
                "judge": rounded(self.judge[i]),
                "gold": None if self.gold is None else rounded(self.gold[i]),
                "refused": None if self.refused is None else bool(self.refused[i]),
            }


def paired(candidate: Answers, baseline: Answers) -> None:
    """Checks that two policies answered the same prompts in the same order.

    Raises:
        DataError: they did not; the first prompt that differs is named.
    """
    remedy = "evaluate both on one data/validated/evaluation.jsonl: prefloop run evaluate --force"
    names = candidate.policy, baseline.policy
    if len(candidate) != len(baseline):
        raise DataError(f"{names[0]} answered {len(candidate)} prompts, {names[1]} {len(baseline)}", remedy)
    for ours, theirs in zip(candidate.prompts, baseline.prompts, strict=True):
        if ours.id != theirs.id:
            raise DataError(
                f"{names[0]} answered prompt {ours.id!r} where {names[1]} answered {theirs.id!r}", remedy
            )
