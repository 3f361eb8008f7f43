"""Generation: the built-in engine against transformers' `generate`, on the same prompts and model."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.alongside.environments import ROOT, answers, ask
from benchmarks.alongside.material import SEED, Material
from benchmarks.peers.clock import Clock
from benchmarks.timing.figures import Result
from benchmarks.timing.sizes import WARM_UP, Lengths
from prefloop.config.rollout import SamplingConfig
from prefloop.models.loading import load_policy
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.training.environment import Environment
from prefloop.training.passes import Passes, as_batch

RESPONSES = 256
REPEATS = WARM_UP + 2
"""Times that a process samples all responses; the first ones warm it up."""
EXACTLY = 32
"""Responses that are sampled in float32, too, where the timed ones are in bf16."""
FAR = 4.0
"""Standard errors by which means of two samples of one distribution do not differ."""


def job_of(
    material: Material, lengths: Lengths, environment: Environment, scratch: Path, threads: int
) -> dict[str, Any]:
    """What either side needs. The peer is given the tokens of the prompts, which are not timed."""
    prompts = [row["prompt"] for row in material.conversations[:RESPONSES]]
    room = lengths.completion[2]
    encoder = Sampler(*load_policy(material.policy), SamplingConfig(max_new_tokens=room)).encoder
    return {
        "name": "generate",
        "method": "generate",
        "policy": str(material.policy),
        "prompts": prompts,
        "tokens": [encoder.prompt(prompt, room) for prompt in prompts],
        "longest": room,
        "repeats": REPEATS,
        "precision": environment.precision,
        "threads": threads,
        "scratch": str(scratch),
    }


def run(job: dict[str, Any], device: str) -> Clock:
    """prefloop's side."""
    clock = Sampled()
    model, tokenizer = load_policy(job["policy"], device=device)
    engine = Sampler(model, tokenizer, SamplingConfig(max_new_tokens=job["longest"]), job["precision"])
    with clock.watching(model):
        clock.step()
        for number in range(job["repeats"]):
            clock.take(engine.sample(job["prompts"], (SEED, "speed", number)))
    return clock


class Sampled(Clock):
    """A clock that keeps the last completions."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Rollouts()

    def take(self, rollouts: Rollouts) -> None:
        """Ends a step that sampled these."""
        self.step()
        self.completions(float(sum(rollouts.lengths)))
        self.last = rollouts

    def as_dict(self) -> dict[str, Any]:
        last = self.last
        return super().as_dict() | {"completions": last.completion_ids, "logprobs": last.logprobs}


def sides(
    job: dict[str, Any], scratch: Path, threads: int, *, plain: bool
) -> dict[str, Callable[[], dict[str, Any]]]:
    """One process each, as `running.Runs`; the peer's is of the interpreter that this runs in.

    What makes the peer fastest is found out in a process before, so that the memory of what was tried does
    not count.
    """
    command = [sys.executable, "-m", "benchmarks.timing.ours"]

    def peer(setting: object) -> dict[str, Any]:
        asked = job | {"setting": setting}
        return ask(Path(sys.executable), "timed_generate", [asked], scratch, threads=threads)

    tuning = peer("tune")["answers"]["generate"]

    def tuned() -> dict[str, Any]:
        if "error" in tuning:
            raise RuntimeError(f"no setting of generate was found: {tuning['error']}")
        return peer(tuning["setting"])

    found: dict[str, Callable[[], dict[str, Any]]] = {
        "ours": lambda: answers(command, "ours", [job], scratch, ROOT, threads, {}),
        "tuned": tuned,
    }
    return found | ({"plain": lambda: peer(())} if plain else {})


@torch.no_grad()
def conclude(result: Result, job: dict[str, Any], device: str) -> None:
    """Whether all sides sampled from one distribution, and what decoding had to read."""
    model, tokenizer = load_policy(job["policy"], device=device)
    pad = int(tokenizer.pad_token_id)

    def sums(rollouts: Rollouts, precision: str) -> list[float]:
        passes = Passes(device, precision, 1.0)
        return passes.whole(model, as_batch(rollouts, pad).to(device)).sum(dim=-1).tolist()

    found: dict[str, tuple[list[float], list[float]]] = {}
    for name in ("ours", "tuned", "plain"):
        for recording in getattr(result, name).recordings[:1]:
            completions = recording["completions"]
            rollouts = Rollouts(job["tokens"], completions)
            found[name] = [float(len(ids)) for ids in completions], sums(rollouts, "fp32")
            if name == "ours":
                said = [sum(row) for row in recording["logprobs"]]
                result.problem = agree(said, sums(rollouts, result.precision), result.precision)
    if result.precision != "fp32":  # bf16 rounds; what is computed has to be the same all the same
        engine = Sampler(model, tokenizer, SamplingConfig(max_new_tokens=job["longest"]))
        exact = engine.sample(job["prompts"][:EXACTLY], (SEED, "speed", "fp32"))
        said = [sum(row) for row in exact.logprobs]
        result.problem = agree(said, sums(exact, "fp32"), "fp32") or result.problem
    for name, other in found.items():
        for what, a, b in zip(("lengths", "log-probs"), found["ours"], other, strict=True):
            if name != "ours" and not apart(a, b) < FAR:
                result.problem = f"{what} of {name} are {apart(a, b):.1f} standard errors off"
    # Each token of the longest completion reads every weight once; keys and values are left out.
    longest = max(found["ours"][0])
    result.bytes_read = longest * sum(p.numel() * p.element_size() for p in model.parameters())


def agree(said: Sequence[float], computed: Sequence[float], precision: str) -> str:
    """What is wrong if the engine's log-probs of whole completions are not the model's in that precision; ""
    if they are.

    In float32 the worst counts, in bf16 the mean: there a logit now and then rounds the other way, by some
    0.1 nats where logits are near 20, and a completion may be a single token.
    """
    off = [abs(a - b) / max(abs(b), 1.0) for a, b in zip(said, computed, strict=True)]
    found, limit = (max(off), 1e-4) if precision == "fp32" else (sum(off) / len(off), 1e-2)
    return "" if found <= limit else f"the engine's log-probs are off by {found:.1e} in {precision}"


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    """Difference of two samples' means in standard errors; 0 for constants that are equal."""
    left, right = (torch.tensor(list(x), dtype=torch.float64) for x in (a, b))
    error = math.sqrt(float(left.var() / len(left) + right.var() / len(right)))
    difference = abs(float(left.mean() - right.mean()))
    return difference / error if error else (0.0 if difference == 0 else math.inf)
