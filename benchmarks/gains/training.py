"""Of steps of a training."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gains.measure import Gain, compare
from benchmarks.timing.material import conversations
from benchmarks.timing.sizes import Lengths
from prefloop.config.compute import ComputeConfig
from prefloop.config.dpo import DPOConfig
from prefloop.config.sft import SFTConfig
from prefloop.data.batching import collate
from prefloop.data.comparisons import Ranking
from prefloop.models import chosen_logprobs, forward, head_logprobs, layout, quick_norms, ragged
from prefloop.models.forward import token_logprobs
from prefloop.models.layout import Layout
from prefloop.models.reward_model import RewardModel
from prefloop.models.shared_prompt import tree_of, tree_scores
from prefloop.training import language_model
from prefloop.training.direct import policy_pairs
from prefloop.training.dpo import dpo_part
from prefloop.training.environment import resolve
from prefloop.training.language_model import TokenRows, encode_blocks, encode_demonstrations
from prefloop.training.pairs import EncodedComparison, encode_comparisons
from prefloop.training.reward import encode_rankings
from prefloop.training.shared_prompts import with_shared_prompts

deterministic = importlib.import_module("torch.utils.deterministic")


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
            use="dropped",
        )


def rows_of(
    name: str, model: Any, tokenizer: Any, lengths: Lengths, steps: int = 1, precision: str = "fp32"
) -> TokenRows:
    """Conversations of SFT, so many steps' worth."""
    said = [
        {"prompt": row["prompt"], "completion": row["chosen"]}
        for row in conversations(len(tokenizer), lengths, lengths.batch * steps)
    ]
    encoded, _ = encode_demonstrations(said, tokenizer, lengths.context)
    config = SFTConfig(batch_size=lengths.batch, max_length=lengths.context)
    return TokenRows(model, tokenizer, encoded, config, (0, name), precision)


def learn(rows: TokenRows, chosen: Sequence[int] = ()) -> float:
    """Loss and gradients of a step of SFT, of all rows or some."""
    rows.model.zero_grad(set_to_none=True)
    loss = 0.0
    for part in rows.parts(chosen or range(len(rows.rows)), 0, 0):
        part.loss.backward()
        loss += part.loss.item()
    return loss


def scoring(name_or_path: str, tokenizer: Any, lengths: Lengths, precision: str) -> Callable[[], float]:
    """Scores of a step's pairs and their gradients, by a reward model on a policy's trunk."""
    scorer = RewardModel.create(name_or_path, seed=0)
    pairs = conversations(len(tokenizer), lengths, lengths.rows("reward"))
    ranked = [Ranking(row["prompt"], [row["chosen"], row["rejected"]], [0, 1]) for row in pairs]
    encoded = encode_rankings(scorer, ranked, lengths.context)
    trees = [tree_of(ranking.sequences) for ranking in encoded]

    def score() -> float:
        scorer.model.zero_grad(set_to_none=True)
        scores = tree_scores(scorer.model, trees, int(tokenizer.pad_token_id), precision)
        total = scores.square().sum()
        total.backward()
        return float(total.detach())

    return score


def four_steps(rows: TokenRows, shuffled: Random) -> None:
    """Four steps of SFT, of rows that nobody saw together before."""
    order, size = shuffled.sample(range(len(rows.rows)), len(rows.rows)), len(rows.rows) // 4
    for first in range(0, len(order), size):
        learn(rows, order[first : first + size])


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
    """Norms of few passes over memory against transformers' own; and in bf16 rounded once for the layers
    behind them, against once for each."""
    rows = rows_of(name, model, tokenizer, lengths)
    plain = copy.deepcopy(model)
    for module in plain.modules():
        vars(module).pop("forward", None)
    own = replace(rows, model=plain)
    assert abs(learn(rows) - learn(own)) < 1e-5 * learn(own)
    what = f"RMS norms with a backward pass of their own, a step of SFT at {name}, {lengths.name} rows"
    yield compare(what, partial(learn, rows), partial(learn, own), rounds)
    if resolve(ComputeConfig(device="cpu")).precision != "bf16":
        return
    exact = copy.deepcopy(model)
    with mock.patch.object(quick_norms, "_before_linear", return_value=[]):
        quick_norms.quicken_norms(exact)
    once = replace(rows, precision="bf16")
    each = replace(once, model=exact)
    assert abs(learn(once) - learn(each)) < 1e-3 * learn(each)
    what = f"in bf16, norms rounded once for the layers behind them, a step of SFT at {name}"
    yield compare(f"{what}, {lengths.name} rows", partial(learn, once), partial(learn, each), rounds)


def projections(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """The way into attention: one product for three, and rotation in few passes."""
    fast = resolve(ComputeConfig(device="cpu")).precision == "bf16"
    for kind in ("fp32", *(["bf16"] if fast else [])):
        rows = rows_of(name, model, tokenizer, lengths, 1, kind)

        def own(rows: TokenRows = rows) -> float:
            with mock.patch.object(ragged, "can_be_quick", return_value=False):
                return learn(rows)

        assert abs(learn(rows) - own()) < (1e-5 if kind == "fp32" else 1e-3) * own()
        what = "queries, keys and values as one product, turned in few passes, a step of SFT at"
        yield compare(f"{what} {name}, {lengths.name} rows, {kind}", partial(learn, rows), own, rounds)


def last_block(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """The last block where its result is wanted, of a language model and of a reward model."""
    rows = rows_of(name, model, tokenizer, lengths)
    score = scoring(model.name_or_path, tokenizer, lengths, "fp32")

    def whole(work: Callable[[], float]) -> float:
        with mock.patch.object(ragged, "narrows", return_value=False):
            return work()

    steps = {"SFT": partial(learn, rows), "the reward model": score}
    for method, step in steps.items():
        assert abs(step() - whole(step)) < 1e-5 * abs(step())
        what = f"the last block where it is wanted, a step of {method} at {name}, {lengths.name} rows"
        yield compare(what, step, partial(whole, step), rounds)

    def asking_everywhere() -> float:
        with mock.patch.object(Layout, "where_asked", lambda layout, _: layout):
            return score()

    assert abs(score() - asking_everywhere()) < 1e-5 * abs(score())
    what = f"queries of the last block where they are wanted, a step of the reward model at {name}"
    yield compare(f"{what}, {lengths.name} rows", score, asking_everywhere, rounds)


def head(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """The output layer where a token is learned, against the output layer on every token."""
    precision = resolve(ComputeConfig(device="cpu")).precision
    rows = rows_of(name, model, tokenizer, lengths, precision=precision)

    def of_every_token(model: Any, ids: Any, real: Any, _: Any, **options: Any) -> Any:
        every = real.clone()
        every[:, 0] = False
        return token_logprobs(model, ids, real, every, **options)

    def everywhere() -> float:
        with mock.patch.object(language_model, "token_logprobs", of_every_token):
            return learn(rows)

    assert abs(learn(rows) - everywhere()) < (1e-5 if precision == "fp32" else 1e-2) * everywhere()
    what = f"the head where a token is learned, a step of SFT at {name}, {lengths.name} rows, {precision}"
    with mock.patch.object(ragged, "narrows", return_value=False):  # both times
        yield compare(what, partial(learn, rows), everywhere, rounds)


def fused(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """AdamW in one pass over the weights, its steps alone."""
    draw = torch.Generator().manual_seed(0)

    def stepping(**how: bool) -> Callable[[], object]:
        own = copy.deepcopy(model)
        for parameter in own.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        return partial(torch.optim.AdamW(own.parameters(), lr=1e-5, **how).step)

    what = f"AdamW in one pass (without: torch's default), a step at {name} without its gradient"
    yield compare(what, stepping(fused=True), stepping(), rounds)


def logits(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Log-probs right from hidden states against those of logits that autograd knows; those of a few rows at
    a time against those of all at once."""
    precision = resolve(ComputeConfig(device="cpu")).precision
    rows = rows_of(name, model, tokenizer, lengths, precision=precision)

    def through_logits() -> float:
        with mock.patch.object(head_logprobs, "_is_plain", return_value=False):
            return learn(rows)

    def whole() -> float:
        with mock.patch.object(chosen_logprobs, "AT_ONCE", {"cpu": 2**62}):
            return learn(rows)

    assert abs(learn(rows) - through_logits()) < 1e-5 * through_logits()
    assert learn(rows) == whole()
    what = f"a step of SFT at {name}, {lengths.name} rows, {precision}"
    yield compare(
        f"log-probs right from hidden states (without: through logits), {what}",
        partial(learn, rows),
        through_logits,
        rounds,
    )
    yield compare(f"log-probs a few rows at a time, {what}", partial(learn, rows), whole, rounds)


def groups(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """In bf16, long rows in groups of few, which are padded to the longest."""
    rows, shuffled = rows_of(name, model, tokenizer, lengths, 4, "bf16"), Random(0)

    def many() -> None:
        with mock.patch.object(layout, "WIDE_ROWS", layout.STEADY_ROWS):
            four_steps(rows, shuffled)

    what = f"in bf16, attention reads long rows {layout.WIDE_ROWS} at a time (without: {layout.STEADY_ROWS})"
    steps = f"{what}, four steps of SFT at {name}, {lengths.name} rows"
    yield compare(steps, partial(four_steps, rows, shuffled), many, rounds)


def torchs_attention(
    kind: torch.dtype, query: Tensor, key: Tensor, value: Tensor, places: Layout, scale: float
) -> Tensor:
    """In the place of `causal_attention`."""
    return ragged._attended(places, query.to(kind), key.to(kind), value.to(kind), scale, 0.0)


def in_bf16(name: str, model: Any, tokenizer: Any, lengths: Lengths, rounds: int) -> Iterator[Gain]:
    """Steps in bf16 of rows that nobody saw together before: attention as products, tokens in multiples."""
    exact, rows = (rows_of(name, model, tokenizer, lengths, 4, kind) for kind in ("fp32", "bf16"))
    shuffled = Random(0)

    def otherwise(name: str, value: Any) -> None:
        with mock.patch.object(ragged, name, value):
            four_steps(rows, shuffled)

    in_four, first = partial(four_steps, rows, shuffled), range(lengths.batch)
    assert abs(learn(rows, first) - learn(exact, first)) < 1e-2 * learn(exact, first)
    what = f"four steps of SFT at {name}, {lengths.name} rows"
    yield compare(f"bf16 (without: float32), {what}", in_four, partial(four_steps, exact, shuffled), rounds)
    for kind in ("float32", "bfloat16"):
        own = partial(torchs_attention, getattr(torch, kind))
        yield compare(
            f"in bf16, attention as batched products (without: torch's, in {kind}), {what}",
            in_four,
            partial(otherwise, "causal_attention", own),
            rounds,
        )
    yield compare(
        f"in bf16, tokens in multiples of {ragged.STEADY}, {what}",
        in_four,
        partial(otherwise, "STEADY", 1),
        rounds,
    )


@contextmanager
def filling() -> Iterator[None]:
    """Deterministic algorithms as torch has them: memory is filled before its first use."""
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
