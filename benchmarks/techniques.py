"""What each technique of training and sampling gains: the same work with it and without, in turn.

    python -m benchmarks.techniques [PART ...] [--threads 1] [--rounds 9] [--json FILE]

Parts are draws, caches, steps, prompts, rows, norms and memory; all of them by default.

Both ways give the same result, which is checked where a test does not hold it already; a line's ratio is the
processor time with the technique over that without. Processor time, as other work on the machine disturbs it
less. Lines marked "dropped" were tried and are not used. See also benchmarks/shared_prompt.py and
benchmarks/length_groups.py.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from transformers import DynamicCache

import tasks  # noqa: F401  (how a stage's threads wait, before torch is imported)
from benchmarks.timing import material
from benchmarks.timing.machine import about
from benchmarks.timing.material import conversations
from benchmarks.timing.sizes import CPU_LENGTHS, CPU_SIZES, Lengths
from prefloop.config.compute import ComputeConfig
from prefloop.config.dpo import DPOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.config.sft import SFTConfig
from prefloop.data.batching import collate
from prefloop.data.comparisons import Ranking
from prefloop.models import forward
from prefloop.models.forward import token_logprobs
from prefloop.models.loading import load_policy
from prefloop.rollout import sampling
from prefloop.rollout.drawing import draw_with_logprobs
from prefloop.training.direct import policy_pairs
from prefloop.training.dpo import dpo_part
from prefloop.training.environment import apply, resolve
from prefloop.training.language_model import TokenRows, encode_blocks, encode_demonstrations
from prefloop.training.pairs import EncodedComparison, encode_comparisons
from prefloop.training.shared_prompts import with_shared_prompts

PARTS = ("draws", "caches", "steps", "prompts", "rows", "norms", "memory")
Work = Callable[[], object]
deterministic = importlib.import_module("torch.utils.deterministic")


@dataclass(frozen=True)
class Gain:
    """Median processor milliseconds with a technique and without it, and the quartiles of their ratio."""

    technique: str
    kept: bool
    with_it: float
    without: float
    low: float
    ratio: float
    high: float


def compare(technique: str, with_it: Work, without: Work, rounds: int, *, kept: bool = True) -> Gain:
    """Times both ways in turn, after a first time that does not count."""
    with_it(), without()
    return gain_of(technique, [(busy(with_it), busy(without)) for _ in range(rounds)], kept=kept)


def gain_of(technique: str, pairs: Sequence[tuple[float, float]], *, kept: bool = True) -> Gain:
    """What pairs of times, with a technique and without it, come to."""
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    ours, theirs = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Gain(technique, kept, ours, theirs, low, middle, high)


def busy(work: Work) -> float:
    """Processor milliseconds of a piece of work."""
    before = time.process_time()
    work()
    return 1000 * (time.process_time() - before)


def whole_inversion(logits: Tensor, noise: Tensor) -> Tensor:
    """A draw by float64 sums over the whole vocabulary."""
    summed = torch.softmax(logits.double(), dim=-1).cumsum(dim=-1)
    return torch.searchsorted(summed, (noise * summed[:, -1]).unsqueeze(-1), right=True).squeeze(-1)


def draws(rounds: int) -> Iterator[Gain]:
    """Blocks of the vocabulary against all of it."""
    config = SamplingConfig()
    for rows, vocabulary in ((256, 1024), (64, 8192), (128, 32768)):
        logits = 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
        noise = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        assert (draw_with_logprobs(logits, noise, config)[0] == whole_inversion(logits, noise)).all()
        yield compare(
            f"draws by blocks, {rows} rows of {vocabulary:,} tokens",
            partial(draw_with_logprobs, logits, noise, config),
            partial(whole_inversion, logits, noise),
            rounds,
        )


def caches(model: Any, tokenizer: Any, rows: list[dict[str, Any]], rounds: int) -> Iterator[Gain]:
    """Keys and values in place, and equal prompts read once."""
    sampler = sampling.Sampler(model, tokenizer, SamplingConfig(max_new_tokens=48))
    different = [row["prompt"] for row in rows[:256]]
    keys: list[tuple[int, ...]] = [(i,) for i in range(len(different))]

    def sampled() -> sampling.Rollouts:
        return sampler.sample(different, (0, "techniques"), keys)

    def copying() -> sampling.Rollouts:
        with mock.patch.object(sampling, "roomy_cache", lambda model, _: DynamicCache(config=model.config)):
            return sampled()

    assert sampled().completion_ids == copying().completion_ids
    yield compare("keys and values in place, 256 answers", sampled, copying, rounds)
    one = sampling.Sampler(model, tokenizer, SamplingConfig(max_new_tokens=1))
    yield compare(
        "a prompt read once for 64 answers, their first tokens (without: 256 different prompts)",
        lambda: one.sample([prompt for prompt in different[:4] for _ in range(64)], (0, "first"), keys),
        lambda: one.sample(different, (0, "first"), keys),
        rounds,
    )


def prompts(
    name: str, model: Any, tokenizer: Any, lengths: Lengths, completions: int, rounds: int
) -> Iterator[Gain]:
    """Of DPO: a prompt read once for its completions."""
    config = DPOConfig(max_length=lengths.context)
    count = lengths.rows("dpo") * 2 // completions
    rows = conversations(len(tokenizer), lengths, lengths.rows("dpo"))
    answers = [row[side] for row in rows for side in ("chosen", "rejected")]
    ordered = [
        Ranking(rows[i]["prompt"], answers[i * completions : (i + 1) * completions], list(range(completions)))
        for i in range(count)
    ]
    apart, _ = encode_comparisons(ordered, tokenizer, config)
    together = with_shared_prompts(apart, model, tokenizer, config)
    part = dpo_part([torch.zeros(completions)] * count, config)

    def step(comparisons: list[EncodedComparison]) -> float:
        model.zero_grad(set_to_none=True)
        pairs = policy_pairs(model, tokenizer, comparisons, "fp32")
        loss = part(pairs, range(count), len(pairs.chosen)).loss
        loss.backward()
        return float(loss.detach())

    assert abs(step(apart) - step(together)) < 1e-5 * abs(step(apart))
    before, after = (
        sum(len(row.input_ids) for comparison in apart for row in comparison.completions),
        sum(len(tree) for comparison in together for tree in comparison.trees),
    )
    yield compare(
        f"a prompt read once for {completions} completions ({after / before:.2f} of the tokens), a step of "
        f"DPO at {name}, {lengths.name} rows",
        partial(step, together),
        partial(step, apart),
        rounds,
    )


def steps(name: str, model: Any, tokenizer: Any, rounds: int) -> Iterator[Gain]:
    """Of a training on blocks of 96 tokens: unset memory, and micro-batches that fit a core's cache."""
    draw = torch.Generator().manual_seed(2)
    blocks = torch.randint(10, len(tokenizer), (32, 96), generator=draw).tolist()
    tokens = 32 * 95

    def step(rows: int = 32) -> None:
        model.zero_grad(set_to_none=True)
        for start in range(0, 32, rows):
            batch = collate(encode_blocks(blocks[start : start + rows]), tokenizer)
            logprobs, _ = token_logprobs(model, batch.input_ids, batch.attention_mask, batch.wanted)
            (-logprobs.sum() / tokens).backward()  # type: ignore[no-untyped-call]

    def filled() -> None:
        with filling():
            step()

    yield compare(f"unset memory is not filled, a step at {name}", step, filled, rounds)
    for rows in (16, 8):
        yield compare(
            f"micro-batches of {rows} rows for 32, a step at {name}",
            partial(step, rows),
            step,
            rounds,
            kept=False,
        )


def rows_of(name: str, model: Any, tokenizer: Any, lengths: Lengths) -> TokenRows:
    """Conversations of SFT, a step's worth."""
    said = [
        {"prompt": row["prompt"], "completion": row["chosen"]}
        for row in conversations(len(tokenizer), lengths, lengths.batch)
    ]
    encoded, _ = encode_demonstrations(said, tokenizer, lengths.context)
    config = SFTConfig(batch_size=len(encoded), max_length=lengths.context)
    return TokenRows(model, tokenizer, encoded, config, (0, name), "fp32")


def learn(rows: TokenRows) -> float:
    """Loss and gradients of a step of SFT."""
    rows.model.zero_grad(set_to_none=True)
    loss = 0.0
    for part in rows.parts(range(len(rows.rows)), 0, 0):
        part.loss.backward()
        loss += part.loss.item()
    return loss


def end_to_end(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Rows without padding against padded groups of like length."""
    rows = rows_of(name, model, tokenizer, lengths)

    def padded() -> float:
        with mock.patch.object(forward, "reads_flat", return_value=False):
            return learn(rows)

    assert abs(learn(rows) - padded()) < 1e-5 * padded()
    yield compare(
        f"rows end to end (without: padded groups), a step of SFT at {name}, {lengths.name} rows",
        partial(learn, rows),
        padded,
        rounds,
    )


def norms(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Norms of few passes over memory against transformers' own."""
    rows = rows_of(name, model, tokenizer, lengths)
    plain = copy.deepcopy(model)
    for module in plain.modules():
        vars(module).pop("forward", None)
    own = replace(rows, model=plain)
    assert abs(learn(rows) - learn(own)) < 1e-5 * learn(own)
    what = f"RMS norms with a backward pass of their own, a step of SFT at {name}, {lengths.name} rows"
    yield compare(what, partial(learn, rows), partial(learn, own), rounds)


def memory(name: str, folder: Path, threads: int, rounds: int) -> Iterator[Gain]:
    """Freed memory kept, in huge pages where they are: processes in turn, as it cannot be undone in one."""

    def milliseconds(**environment: str) -> float:
        code = f"from benchmarks.techniques import child; child({name!r}, {str(folder)!r}, {threads})"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return float(done.stdout.splitlines()[-1])

    # What a variable of glibc's sets, prefloop leaves; this one changes nothing here.
    left = {"MALLOC_ARENA_TEST": "8", "THP_MEM_ALLOC_ENABLE": "0"}
    pairs = [(milliseconds(), milliseconds(**left)) for _ in range(max(rounds // 2, 3))]
    yield gain_of(f"freed memory stays, a step of SFT at {name}", pairs)


def child(name: str, folder: str, threads: int) -> None:
    """Prints the processor milliseconds of a step."""
    apply(resolve(ComputeConfig(device="cpu", precision="fp32")), threads)
    model, tokenizer = load_policy(Path(folder))
    rows = rows_of(name, model, tokenizer, CPU_LENGTHS["short"])
    learn(rows), learn(rows)
    print(statistics.median(busy(partial(learn, rows)) for _ in range(7)))


@contextmanager
def filling() -> Iterator[None]:
    """Deterministic algorithms as torch has them: memory is filled before its first use."""
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


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
                if "norms" in parts and short:
                    gains += norms(name, model, tokenizer, lengths, asked.rounds)
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
