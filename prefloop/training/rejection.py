"""Rejection-sampling fine-tuning: of n completions a prompt the best becomes a demonstration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rejection import RejectionConfig
from prefloop.data.batching import Order, steps_in
from prefloop.data.templates import Encoded
from prefloop.errors import DataError
from prefloop.files import read_json, write_json
from prefloop.objectives.best_of_n import best_of, kl_bound
from prefloop.rewards.sources import RewardSum
from prefloop.rollout.engine import make_engine
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.distribution import ranks
from prefloop.training.experience import Collector
from prefloop.training.language_model import TokenRows
from prefloop.training.looks import Row
from prefloop.training.loop import Observer, Part, train
from prefloop.training.memory import MicroBatches
from prefloop.training.recorder import Recorder
from prefloop.training.sharding import gathered


@dataclass(frozen=True)
class Round:
    """What one round learns from.

    Attributes:
        rows: the best completion of each prompt. figures: of all that was sampled.
    """

    rows: list[Encoded]
    figures: dict[str, float]


class RejectionTrainer:
    """Tunes a policy, in place, on the best of its own completions; in the first round they are SFT's.

    Args:
        rewards: what scores a completion.
        prompts: rows of data/validated/prompts.jsonl; each round samples from all of them.

    Attributes:
        rounds: by their 0-based number, once the training is through.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardSum,
        prompts: Sequence[Row],
        config: RejectionConfig,
        *,
        seed: int,
        precision: str = "fp32",
    ) -> None:
        if not prompts:
            raise DataError(
                "rejection has no prompt to sample from", "look at data/raw/prompts.jsonl and data/quarantine"
            )
        self.policy, self.tokenizer, self.prompts = policy, tokenizer, prompts
        self.config, self.precision, self.key = config, precision, (seed, "rejection")
        self.engine = make_engine(policy, tokenizer, config, precision)
        self.micro = MicroBatches("rejection", config.micro_batch_size)
        self.collector = Collector(self.engine, rewards, prompts, config.group_size, self.key, self.micro)
        self.per_round = steps_in(len(prompts), config.batch_size, config.epochs, config.steps)
        self.rounds: dict[int, Round] = {}

    def train(
        self, checkpoints: Checkpoints, recorder: Recorder, observer: Observer | None = None
    ) -> dict[str, Any]:
        """Runs `config.rounds` rounds, from the last checkpoint if there is one.

        Returns:
            What `prefloop.training.loop.train` says of the training, for the stage's figures.

        Raises:
            TrainingError: the loss is NaN. StopRequested: asked to end; a checkpoint was saved.
        """

        def parts(step: int, micro_batch_size: int) -> Iterator[Part]:
            number, place = divmod(step, self.per_round)
            self._open(number, checkpoints)
            rows, figures = self.rounds[number].rows, self.rounds[number].figures
            order = Order(len(rows), self.config.batch_size, (*self.key, "round", number))
            learned = TokenRows(
                self.policy, self.tokenizer, rows, self.config, (*self.key, number), self.precision
            )
            for part in learned.parts(order.step(place), place, micro_batch_size):
                of_round = place == 0 and ranks().main
                yield Part(part.loss, {**part.metrics, **figures} if of_round else part.metrics)
                figures = {}

        with closing(self.engine):
            outcome = train(
                self.policy,
                self.config,
                self.config.rounds * self.per_round,
                parts,
                key=self.key,
                checkpoints=checkpoints,
                recorder=recorder,
                what="rejection",
                observer=observer,
                micro=self.micro,
            )
            for number in range(self.config.rounds):  # a resumed training has not seen those before
                self._open(number, checkpoints)
        return outcome

    def _open(self, number: int, checkpoints: Checkpoints) -> None:
        """Samples round `number`, or reads what was sampled when it began: a resumed policy has moved on."""
        if number in self.rounds:
            return
        file = checkpoints.folder / f"round-{number}.json"
        # Rank 0 looks: it may have written the file before another looks.
        if kept := ranks().from_main(read_json(file) if ranks().main and file.exists() else None):
            found = Round([Encoded(**row) for row in kept["rows"]], kept["figures"])
        else:
            self.policy.eval()
            with gathered(self.policy):
                if self.engine.version != number:
                    self.engine.update(self.policy, number)
                found = self._sample(number)
            self.policy.train()
            if ranks().main:
                write_json(file, asdict(found))
        self.rounds[number] = found

    def _sample(self, number: int) -> Round:
        size = self.config.group_size
        scored = self.collector.draw(range(len(self.prompts)), number)
        scores, rollouts = scored.scores.view(-1, size), scored.rollouts
        best = best_of(scores)
        rows = []
        for place, sample in enumerate(best.tolist()):
            i = place * size + sample
            prompt, completion = rollouts.prompt_ids[i], rollouts.completion_ids[i]
            rows.append(Encoded(prompt, completion, [False] * len(prompt) + [True] * len(completion)))
        kept_lengths = [len(row.completion_ids) for row in rows]
        return Round(
            rows,
            {
                "score": float(scores.mean()),
                "best_score": float(scores.gather(1, best.unsqueeze(1)).mean()),
                "kl_bound": kl_bound(size, number + 1),
                "length": sum(rollouts.lengths) / len(rollouts.lengths),
                "best_length": sum(kept_lengths) / len(kept_lengths),
                "ended": sum(rollouts.ended) / len(rollouts.ended),
                "unique": len(set(rollouts.texts)) / len(rollouts.texts),
            },
        )
