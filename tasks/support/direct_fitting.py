"""What the stages that learn from preferences directly share: the policy, the rows, and what they write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.direct import DirectConfig, PairwiseConfig
from prefloop.data.comparisons import rankings
from prefloop.data.holdout import split_holdout
from prefloop.files import read_jsonl
from prefloop.models.loading import load_policy
from prefloop.training.direct import Run
from prefloop.training.looks import Looks, apart
from prefloop.training.pairs import Cut, EncodedComparison, encode_comparisons
from prefloop.training.shared_prompts import with_shared_prompts
from tasks.support.looks import PROMPTS
from tasks.support.policy_output import write_policy
from tasks.support.stage import Stage
from tasks.support.training import prepare, within_context
from tasks.support.workspace import state_folder

C = TypeVar("C", bound=DirectConfig)
P = TypeVar("P", bound=PairwiseConfig)


@dataclass(frozen=True)
class Start(Generic[C]):
    """A stage ready to train.

    Attributes:
        model, tokenizer: the policy it starts from.
        config: the stage's, within what the model can read.
        rows, held: rows to fit, and those kept apart.
        run: seed, precision, checkpoints and recorder of the training.
        cache: folder of reference log-probs, which outlives the stage.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: C
    rows: list[dict[str, Any]]
    held: list[dict[str, Any]]
    run: Run
    cache: Path

    def watched_by(self, observer: Looks) -> Run:
        """The run, with looks at the policy on its way."""
        return {**self.run, "observer": observer}

    @property
    def precision(self) -> str:
        """Of the training: "fp32" or "bf16"."""
        return self.run["precision"]


def start(stage: Stage[C], files: Sequence[Path], policy: str) -> Start[C]:
    """Loads the policy and the rows; every stage of these keeps the same prompts apart for an equal share."""
    bench = prepare(stage)
    rows: list[dict[str, Any]] = []
    for file in files:
        stage.dataset(file.stem, file)
        rows += read_jsonl(file)
    model, tokenizer = load_policy(
        policy, device=bench.environment.device, trust_remote_code=bench.trust_remote_code
    )
    config = within_context(stage.config, model)
    fitted, held = split_holdout(rows, config.holdout, "dpo")
    run = Run(
        seed=stage.seed,
        precision=bench.environment.precision,
        checkpoints=bench.checkpoints,
        recorder=stage.recorder,
    )
    return Start(model, tokenizer, config, fitted, held, run, state_folder() / "reference")


def watched(stage: Stage[C], begun: Start[C], policy: PreTrainedModel) -> Looks:
    """What looks at the policy on its way: at prompts for reinforcement learning, which none is fitted to.

    All these stages are looked at on the same prompts, with the same noise.
    """
    config = begun.config
    prompts: list[dict[str, Any]] = []
    if config.looks:
        stage.dataset("prompts", PROMPTS)
        prompts = list(read_jsonl(PROMPTS))
    return Looks(
        policy,
        begun.tokenizer,
        apart(prompts, config.look_prompts, (stage.seed, "looks"))[1],
        config.look_sampling,
        config.looks,
        seed=stage.seed,
        precision=begun.precision,
        micro_batch_size=config.micro_batch_size,
    )


@dataclass(frozen=True)
class Comparisons:
    """Rows as pairs: those to fit, those held out, and what the metrics and the model's card say of them."""

    fitted: list[EncodedComparison]
    held: list[EncodedComparison]
    counts: dict[str, int]
    about: str


def comparisons(stage: Stage[Any], begun: Start[P]) -> Comparisons:
    """Encodes the pairs and says how many there are."""
    (fitted, unused), (held, _) = rankings(begun.rows), rankings(begun.held)
    encoded, cut = encode_comparisons(fitted, begun.tokenizer, begun.config)
    encoded_held, _ = encode_comparisons(held, begun.tokenizer, begun.config, strict=False)
    pairs = sum(len(comparison.pairs) for comparison in encoded)
    about = f"{pairs:,} pairs of {len(encoded):,} prompts"
    stage.say(f"{about}, {len(encoded_held):,} prompts held out, {said(cut)}")
    counts = {"pairs": pairs, "prompts": len(encoded), "unused": unused, **cut_figures(cut)}
    model, tokenizer, config = begun.model, begun.tokenizer, begun.config
    # Before anything is asked of the model, so that policy and reference compute alike.
    encoded, encoded_held = (
        with_shared_prompts(part, model, tokenizer, config) for part in (encoded, encoded_held)
    )
    return Comparisons(encoded, encoded_held, counts, about)


def said(cut: Cut) -> str:
    """What was cut, for the person who watches."""
    return f"{cut.prompts:,} cut ({cut.chosen:,} chosen and {cut.rejected:,} rejected completions)"


def cut_figures(cut: Cut) -> dict[str, int]:
    """What was cut, for the stage's figures."""
    return {"cut": cut.prompts, "cut_chosen": cut.chosen, "cut_rejected": cut.rejected}


def finish(
    stage: Stage[Any],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
    data: str,
    figures: Mapping[str, Any],
    looks: Looks,
) -> None:
    """Writes models/POLICY, its figures, and what it answered on its way."""
    write_policy(stage, policy, tokenizer, what, data, looks.rows)
    stage.metrics(figures)
