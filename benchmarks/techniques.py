"""What each technique of training and sampling gains: the same work with it and without, in turn.

    python -m benchmarks.techniques [PART ...] [--threads 1] [--rounds 9] [--json FILE]

Parts are those of `PARTS`; all of them by default. bf16, groups, shapes and heap are left out on a processor
that is slow at bf16.

Both ways give the same result, which is checked where a test does not hold it already; a line's ratio is the
processor time with the technique over that without. Processor time, as other work on the machine disturbs it
less; threads that wait for each other are timed on the wall. Lines marked "dropped" were tried and are not
used, "a setting" is used where the user asks for it. See also benchmarks/shared_prompt.py,
benchmarks/length_groups.py and benchmarks/startup.py.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.figures_file import write_figures
from benchmarks.gains import generation, halves, held, long_prompts, models, processes, training, untaken
from benchmarks.gains.measure import Gain
from benchmarks.timing import material
from benchmarks.timing.machine import about
from benchmarks.timing.sizes import CPU_LENGTHS, CPU_SIZES, Lengths
from prefloop.config.compute import ComputeConfig
from prefloop.models.loading import load_policy
from prefloop.training.environment import apply, resolve

Step = Callable[[str, Any, Any, Lengths, int], Iterator[Gain]]
SIZES = ("1m", "7m")
LENGTHS = tuple(CPU_LENGTHS)
GENERATION = {"caches": generation.caches, "leaving": generation.leaving}
"""Of sampling, with short rows at 1m."""
STEPS: dict[str, tuple[Step, tuple[str, ...], tuple[str, ...]]] = {
    "rows": (training.end_to_end, SIZES, LENGTHS),
    "block": (training.last_block, SIZES, LENGTHS),
    "norms": (training.norms, SIZES, ("short",)),
    "projections": (training.projections, SIZES, LENGTHS),
    "head": (training.head, SIZES, ("short",)),
    "adamw": (training.fused, SIZES, ("short",)),
    "logits": (training.logits, ("7m",), LENGTHS),
    "recomputed": (untaken.recomputed, SIZES, ("short",)),
    "beforehand": (untaken.beforehand, SIZES, ("short",)),
    "halves": (halves.halves, SIZES, LENGTHS),
}
"""Of a training's step: what is timed, of which sizes, with which rows."""
BF16: dict[str, tuple[Step, tuple[str, ...], tuple[str, ...]]] = {
    "bf16": (training.in_bf16, SIZES, LENGTHS),
    "groups": (training.groups, SIZES, ("long",)),
}
"""Likewise, where the processor is fast at bf16."""
MODELS = {"reference": models.reference, "critic": models.critic}
"""With short rows at 7m."""
PARTS = (
    *("draws", *GENERATION, "prefill", "steps", "prompts"),
    *(*STEPS, *BF16, "shapes", *MODELS, "memory", "heap", "spinning", "garbage"),
)


def gains(parts: Sequence[str], folder: Path, threads: int, rounds: int) -> Iterator[Gain]:
    """What the parts that were asked for gain, one after the other."""
    fast = resolve(ComputeConfig(device="cpu")).precision == "bf16"
    steps = {**STEPS, **(BF16 if fast else {})}
    if "draws" in parts:
        yield from generation.draws(rounds)
    if "garbage" in parts:
        yield from processes.garbage(rounds)
    for name, lengths in product(SIZES, CPU_LENGTHS.values()):
        made = material.make(folder / name / lengths.name, CPU_SIZES[name], lengths, 1024)
        model, tokenizer = load_policy(made.policy)
        short = lengths.name == "short"
        for part, sampled in GENERATION.items() if short and name == "1m" else ():
            if part in parts:
                yield from sampled(model, tokenizer, made.conversations, rounds)
        if "steps" in parts and short:
            yield from training.steps(name, model, tokenizer, rounds)
        for part, (step, sizes, rows) in steps.items():
            if part in parts and name in sizes and lengths.name in rows:
                yield from step(name, model, tokenizer, lengths, rounds)
        for part, beside in MODELS.items() if short and name == "7m" else ():
            if part in parts:
                yield from beside(name, model, tokenizer, made, lengths, rounds)
        if "shapes" in parts and short and name == "1m" and fast:
            yield from held.shapes(name, made.policy, threads, rounds)
        if "prefill" in parts and not short and name == "1m":
            precision = "bf16" if fast else "fp32"
            yield from long_prompts.long_prompts(name, made.policy, threads, rounds, precision)
        if "memory" in parts and short:
            yield from processes.memory(name, made.policy, threads, rounds)
        if "spinning" in parts and short and name == "1m":
            yield from processes.spinning(name, made.policy, rounds)
        for completions in (2, 4) if "prompts" in parts else ():
            yield from training.prompts(name, model, tokenizer, lengths, completions, rounds)
    for name in ("7m", "30m") if "heap" in parts and fast else ():
        made = material.make(folder / name / "heap", CPU_SIZES[name], CPU_LENGTHS["short"], 1024)
        yield from held.heaps(name, made.policy, threads, rounds)


def main() -> None:
    """Prints a line a technique."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all unless named")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    environment = resolve(ComputeConfig(device="cpu", precision="fp32"))
    apply(environment, asked.threads)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    found = []
    print("| technique | with, ms | without, ms | ratio [quartiles] | |\n| --- | ---: | ---: | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for gain in gains(asked.parts or PARTS, Path(folder), asked.threads, asked.rounds):
            ratio = f"{gain.ratio:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
            print(
                f"| {gain.technique} | {gain.with_it:.1f} | {gain.without:.1f} | {ratio} | {gain.use} |",
                flush=True,
            )
            found.append(gain)
    facts = {**about(environment, asked.threads), "load": round(os.getloadavg()[0], 2)}
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    if asked.json:
        write_figures(asked.json, {"about": facts, "gains": found})


if __name__ == "__main__":
    main()
