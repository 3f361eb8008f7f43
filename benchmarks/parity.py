"""Trains prefloop and TRL on the same tokens and compares every step's loss and gradient norm.

    python -m benchmarks.parity [METHOD ...] [--steps 20] [--model llama] [--json FILE]

Methods are sft, dpo, orpo, simpo, reward, kto, grpo, rloo and ppo; all of them by default. Exits with 1 if a
comparison is not as its row says.

TRL is no dependency of prefloop. Each version that is needed is installed on first use into a virtual
environment of its own, .prefloop/benchmarks/trl-VERSION, which a .pth file lets see the packages of the
environment that this runs in: both sides compute with the same torch, transformers and tokenizers, and pip
fetches TRL alone. TRL's side runs there as scripts (benchmarks/peers/), which cannot import prefloop. PPO
needs 1.12.0, the last version that has it.

What both sides share: a random model of two layers in float32, its tokenizer, conversations as messages (each
side renders and tokenises them itself; the tokens that went through the models are compared, too), the order
of rows, AdamW at a constant rate without decay, and gradient clipping. What on-policy methods would sample is
made up beforehand, with its scores, and given to both.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers.utils import logging

from benchmarks.alongside import offline, on_policy
from benchmarks.alongside.environments import ask, environment
from benchmarks.alongside.material import Material, make
from benchmarks.alongside.rows import ROWS
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Outcome, Row, compare, table
from benchmarks.figures_file import write_figures

# A peer's script, the version of TRL that it runs on, prefloop's side, and the methods.
PEERS: tuple[tuple[str, str, ModuleType, tuple[str, ...]], ...] = (
    ("trl_offline", "1.16.0", offline, ("sft", "dpo", "orpo", "simpo", "reward", "kto")),
    ("trl_on_policy", "1.16.0", on_policy, ("grpo", "rloo")),
    ("trl_ppo", "1.12.0", on_policy, ("ppo",)),
)


def main(arguments: Sequence[str] | None = None) -> int:
    methods = [method for *_, known in PEERS for method in known]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"{', '.join(methods)}; all by default")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps, a multiple of 4")
    parser.add_argument("--model", default="llama", help="architecture, as transformers calls it")
    parser.add_argument("--json", type=Path, help="write every step's figures to this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.methods) - set(methods):
        parser.error(f"no method {', '.join(sorted(unknown))}: there are {', '.join(methods)}")
    if options.steps < 4 or options.steps % 4:
        parser.error("--steps must be a multiple of 4: PPO makes 4 of each rollout batch")
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    kept: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    versions: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    with tempfile.TemporaryDirectory() as name:
        material = make(Path(name) / "material", options.model)
        for script, version, side, known in PEERS:
            rows = [row for row in ROWS if row.method in known and row.method in (options.methods or methods)]
            if not rows:
                continue
            versions[script], results = together(
                rows, side, material, Path(name) / script, script, version, options.steps
            )
            for row, ours, theirs in results:
                outcomes.append(compare(row, ours, theirs, options.steps))
                kept.append({"name": row.name, "prefloop": ours, "peer": theirs})
    print(table(outcomes))
    for script, used in versions.items():
        print(f"{script}: {used}", file=sys.stderr)
    if options.json:
        for outcome, figures in zip(outcomes, kept, strict=True):
            figures |= {"verdict": outcome.verdict, "loss": outcome.loss, "norm": outcome.norm}
        write_figures(options.json, {"versions": versions, "rows": kept})
    return 0 if all(outcome.passes for outcome in outcomes) else 1


def together(
    rows: Sequence[Row],
    ours: ModuleType,
    material: Material,
    scratch: Path,
    script: str,
    version: str,
    steps: int,
) -> tuple[dict[str, str], list[tuple[Row, dict[str, Any], dict[str, Any]]]]:
    """The peer's versions, and for each row what prefloop and the peer recorded."""
    python = environment("trl", version)
    sides = []
    for number, row in enumerate(rows):
        (scratch / str(number)).mkdir(parents=True)
        sides.append(Side(row, material, scratch / str(number), ours.section(row, steps)))
    print(f"TRL {version}: {len(rows)} trainings", file=sys.stderr, flush=True)
    answers = ask(python, script, [ours.job(side) for side in sides], scratch)
    print(f"prefloop: {len(rows)} trainings", file=sys.stderr, flush=True)
    found = []
    for side in sides:
        try:
            recorded = ours.run(side).as_dict()
        except Exception as error:  # one training that fails does not hide the others
            recorded = {"error": f"{type(error).__name__}: {error}"}
        found.append((side.row, recorded, answers["answers"][side.row.name]))
    return answers["versions"], found


if __name__ == "__main__":
    sys.exit(main())
