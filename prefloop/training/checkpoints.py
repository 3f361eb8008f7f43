"""Resumable checkpoints in a scratch folder: whole or absent, two kept, read without unpickling code."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefloop.errors import ModelError
from prefloop.files import atomic_folder, read_json, sha256_file, write_json
from prefloop.training.distribution import ranks
from prefloop.training.sharding import is_shard, joined_parts, part_for, part_of


class Checkpoints:
    """Checkpoints of one training.

    Where several processes share it, rank 0 writes them and all read the same; how many there are is not part
    of what they hold, so any number may go on from them.

    Args:
        folder: where they stand, named by the stage key: another key never sees them.
        every_seconds: least time between two (seconds). What is computed never depends on it.
    """

    def __init__(self, folder: Path, every_seconds: float) -> None:
        self.folder, self.every_seconds = folder, every_seconds
        self._last = time.monotonic()

    def due(self) -> bool:
        """True when the last one is old enough, in the process that writes them; where weights are sharded,
        in all processes, since each has a part of it."""
        group = ranks()
        due = group.main and time.monotonic() - self._last >= self.every_seconds
        return group.from_main(due) if group.sharded else due

    def save(self, step: int, state: dict[str, Any], part: int = 0) -> Path:
        """Writes the checkpoint of `step` and removes all but the two newest; rank 0 alone does.

        Args:
            step: whole steps done. part: above 0, a place within the next step; greater ones are newer.
        """
        target = self.folder / (f"checkpoint-{step:08d}" + (f"-{part:06d}" if part else ""))
        if not ranks().main:
            return target
        with atomic_folder(target) as draft:
            torch.save(state, draft / "state.pt")
            write_json(draft / "checkpoint.json", {"step": step, "sha256": sha256_file(draft / "state.pt")})
        for old in self._found()[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        self._last = time.monotonic()
        return target

    def latest(self) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of the newest checkpoint that is whole; a damaged one is passed over."""
        group = ranks()
        if group.count == 1:
            return next((found for f in reversed(self._found()) if (found := self._read(f))), None)
        # Rank 0 looks which is whole, lest another see a different one.
        chosen = next((f.name for f in reversed(self._found()) if self._read(f)), "") if group.main else ""
        chosen = group.from_main(chosen)
        return self._read(self.folder / chosen) if chosen else None

    def _read(self, folder: Path) -> tuple[int, dict[str, Any]] | None:
        """(step, state) of one checkpoint; None if it is damaged."""
        try:
            about = read_json(folder / "checkpoint.json")
            if sha256_file(folder / "state.pt") != about["sha256"]:
                return None
            # weights_only: tensors and plain containers, no code.
            state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
            return int(about["step"]), state
        except Exception:
            return None

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*")) if self.folder.is_dir() else []


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, by name: all of them, or an adapter's alone; tied ones once.

    Where weights are sharded all processes call it. It is on the CPU then, and of what is sharded at the
    moment rank 0 alone has values.
    """
    sharded = ranks().sharded
    return {
        name: joined_parts(part_of(p), p) if is_shard(p) else _copy(p, sharded)
        for name, p in module.named_parameters()
        if p.requires_grad
    }


def _copy(parameter: Tensor, to_cpu: bool) -> Tensor:
    return parameter.detach().to("cpu" if to_cpu else parameter.device, copy=True)


def load_trainable(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Loads what `trainable_state` gave, in place.

    Raises:
        ModelError: names or shapes differ from the module's.
    """
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    wrong = sorted(own.keys() ^ state.keys()) or [n for n in own if own[n].shape != state[n].shape]
    if wrong:
        raise ModelError(
            f"the checkpoint of {what} does not fit this model: {wrong[0]} differs",
            "remove the stage's scratch folder under .prefloop/scratch and run again",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            if is_shard(parameter):
                part_of(parameter).copy_(part_for(state[name], parameter))
            else:
                parameter.copy_(state[name])
