"""What a training reports for a comparison, taken from either side by the same code.

Needs torch alone: prefloop's side imports it, and the peers' scripts find it beside them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Noting(Protocol):
    """What a training is watched by: a `Recording`, or a `clock.Clock`."""

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """For the length of the training."""

    def add(self, loss: Tensor | float) -> None:
        """Takes what a micro-batch adds to its step's loss."""

    def step(self, norm: Tensor | float) -> None:
        """Ends an optimiser step, whose gradient has this global norm before clipping."""

    def as_dict(self) -> dict[str, Any]:
        """What was noted, for JSON."""


class Recording:
    """Losses, gradient norms and tokens of every optimiser step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.tokens: list[list[list[int]]] = []
        self._seen: list[list[int]] = []
        self._loss = 0.0

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Notes the sequences that go through a model's trunk with gradient."""
        trunk = getattr(model, "base_model", model)
        hook = trunk.register_forward_pre_hook(self._look, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def add(self, loss: Tensor | float) -> None:
        """Takes what a micro-batch adds to its step's loss."""
        self._loss += float(loss)

    def step(self, norm: Tensor | float) -> None:
        """Ends an optimiser step, whose gradient has this global norm before clipping."""
        self.losses.append(self._loss)
        self.norms.append(float(norm))
        # The order of rows within a step, and how they are split among passes, is each side's own affair.
        self.tokens.append(sorted(self._seen))
        self._loss, self._seen = 0.0, []

    def as_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "norms": self.norms, "tokens": self.tokens}

    def _look(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        ids = args[0] if args else kwargs["input_ids"]
        if "layout" in kwargs:
            self._seen += laid_out(ids[0], kwargs["layout"])
            return
        mask = kwargs["attention_mask"]
        for row, real in zip(ids, mask, strict=True):
            self._seen += sequences_of(row, real.bool())


def sequences_of(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The sequences that a row of a batch holds.

    Args:
        ids: (T,) int64.
        mask: (T,) bool, True on real tokens; or (1, T, T) bool, True where query may look at key, of a row
            whose sequences share its beginning: what the last token of each looks at is that sequence.
    """
    if mask.ndim == 1:
        return [ids[mask].tolist()]
    looks = mask[0]
    last = (looks.sum(dim=0) == 1) & looks[:, 0]  # nothing but the token itself looks at it
    return [ids[looks[t]].tolist() for t in last.nonzero().flatten().tolist()]


def laid_out(ids: Tensor, layout: Any) -> list[list[int]]:
    """The sequences that attention sees of tokens end to end.

    Args:
        ids: (N,) int64. layout: prefloop's (`prefloop.models.layout.Layout`).
    """
    cells = torch.arange(len(ids)) if layout.tokens is None else layout.tokens
    groups = cells.split([count * width for count, width in layout.shapes])
    rows = [row for group, shape in zip(groups, layout.shapes, strict=True) for row in group.view(shape)]
    return [ids[row.unique_consecutive()].tolist() for row in rows]  # padding repeats the row's last token


def answer_jobs(train: Callable[[dict[str, Any]], Noting], versions: dict[str, str]) -> None:
    """A peer script's main: reads jobs from the file named first, writes what `train` recorded to the second.

    A job that fails is reported with its error, so that one does not hide the others.
    """
    source, target = (Path(name) for name in sys.argv[1:3])
    answers: dict[str, Any] = {}
    for job in json.loads(source.read_text(encoding="utf-8")):
        print(f"  {job['name']}", file=sys.stderr, flush=True)
        try:
            answers[job["name"]] = train(job).as_dict()
        except Exception as error:
            answers[job["name"]] = {"error": f"{type(error).__name__}: {error}"}
    target.write_text(json.dumps({"versions": versions, "answers": answers}), encoding="utf-8")
