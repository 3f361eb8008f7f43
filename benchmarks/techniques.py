"""What each technique of training and sampling gains: the same work with it and without, in turn.

    python -m benchmarks.techniques [PART ...] [--threads 1] [--rounds 9] [--json FILE]

Parts are draws, caches, steps, prompts, rows, block, norms, logits, bf16 and memory; all of them by default.
Those of bf16 are left out on a processor that is slow at it.

Both ways give the same result, which is checked where a test does not hold it already; a line's ratio is the
processor time with the technique over that without. Processor time, as other work on the machine disturbs it
less. Lines marked "dropped" were tried and are not used. See also benchmarks/shared_prompt.py and
benchmarks/length_groups.py.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import tasks  # noqa: F401  (how a stage's threads wait, before torch is imported)
from benchmarks.gains.generation import caches, draws
from benchmarks.gains.training import end_to_end, in_bf16, last_block, logits, memory, norms, prompts, steps
from benchmarks.timing import material
from benchmarks.timing.machine import about
from benchmarks.timing.sizes import CPU_LENGTHS, CPU_SIZES
from prefloop.config.compute import ComputeConfig
from prefloop.models.loading import load_policy
from prefloop.training.environment import apply, resolve

PARTS = ("draws", "caches", "steps", "prompts", "rows", "block", "norms", "logits", "bf16", "memory")


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
    parts = asked.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    gains = list(draws(asked.rounds)) if "draws" in parts else []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("1m", "7m"):
            for lengths in CPU_LENGTHS.values():
                made = material.make(Path(folder) / name / lengths.name, CPU_SIZES[name], lengths, 256)
                model, tokenizer = load_policy(made.policy)
                short = lengths.name == "short"
                if "caches" in parts and short and name == "1m":
                    gains += caches(model, tokenizer, made.conversations, asked.rounds)
                if "steps" in parts and short:
                    gains += steps(name, model, tokenizer, asked.rounds)
                if "rows" in parts:
                    gains += end_to_end(name, model, tokenizer, lengths, asked.rounds)
                if "block" in parts:
                    gains += last_block(name, model, tokenizer, lengths, asked.rounds)
                if "norms" in parts and short:
                    gains += norms(name, model, tokenizer, lengths, asked.rounds)
                if "logits" in parts and name == "7m":
                    gains += logits(name, model, tokenizer, lengths, asked.rounds)
                if "bf16" in parts and resolve(ComputeConfig(device="cpu")).precision == "bf16":
                    gains += in_bf16(name, model, tokenizer, lengths, asked.rounds)
                if "memory" in parts and short:
                    gains += memory(name, made.policy, asked.threads, asked.rounds)
                for completions in (2, 4) if "prompts" in parts else ():
                    gains += prompts(name, model, tokenizer, lengths, completions, asked.rounds)
    print("| technique | with, ms | without, ms | ratio [quartiles] | |\n| --- | ---: | ---: | --- | --- |")
    for gain in gains:
        ratio = f"{gain.ratio:.2f} [{gain.low:.2f}, {gain.high:.2f}]"
        word = "kept" if gain.kept else "dropped"
        print(f"| {gain.technique} | {gain.with_it:.1f} | {gain.without:.1f} | {ratio} | {word} |")
    facts = {**about(environment, asked.threads), "load": round(os.getloadavg()[0], 2)}
    print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    if asked.json:
        asked.json.write_text(json.dumps({"about": facts, "gains": [asdict(gain) for gain in gains]}))


if __name__ == "__main__":
    main()
