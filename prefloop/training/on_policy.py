"""The loop of every on-policy method: sample, learn, look at held-out prompts, log, checkpoint, stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.on_policy import OnPolicyConfig, PolicyGradientConfig
from prefloop.data.batching import Batch, Order
from prefloop.data.templates import Encoded
from prefloop.errors import DataError, StopRequested, TrainingError
from prefloop.models.adapters import reference_mode
from prefloop.objectives.kl import FixedKL
from prefloop.rewards.sources import RewardSum
from prefloop.rollout.engine import make_engine
from prefloop.training.checkpoints import Checkpoints, load_trainable, trainable_state
from prefloop.training.demonstrating import demonstrate
from prefloop.training.distribution import ranks
from prefloop.training.engine_gap import gap_of
from prefloop.training.experience import Collector, Experience, Learning
from prefloop.training.kl_control import controller_of
from prefloop.training.looks import Row
from prefloop.training.loop import Part, accumulated, check_finite
from prefloop.training.memory import MicroBatches, room_for_optimiser
from prefloop.training.noise import permutation
from prefloop.training.optimisation import Optimisation, save_memory
from prefloop.training.passes import Passes
from prefloop.training.recorder import Recorder
from prefloop.training.selection import Selection, hold_out
from prefloop.training.sharding import gathered, training

E = TypeVar("E", bound=Experience)
CONSTANT_LIMIT = 3
"""Rollout batches in a row with one score for all that end a training."""


class OnPolicyTrainer(ABC, Generic[E]):
    """Improves a policy on what it samples. A method says how it collects and what its loss is.

    Args:
        policy: trained in place. reference: frozen, or the policy itself when it carries an adapter.
        rewards: what scores a completion.
        prompts: rows of data/validated/prompts.jsonl.
        demonstrations: encoded, for PPO-ptx; may be empty when `ptx_coef` is 0.

    Attributes:
        constant: rollout batches in a row in which the reward model scored every completion the same.
        name: the method's, for keys, messages and files. experience: its class of rollout batches.
        together: rows of a rollout batch that go through a model together and count as one in a minibatch.
    """

    name: ClassVar[str]
    experience: type[E]
    together: ClassVar[int] = 1

    def __init__(
        self,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rewards: RewardSum,
        prompts: Sequence[Row],
        config: OnPolicyConfig,
        *,
        seed: int,
        precision: str = "fp32",
        demonstrations: Sequence[Encoded] = (),
    ) -> None:
        self.key = (seed, self.name)
        self.prompts, self.held_out = hold_out(prompts, config, self.key)
        if not self.prompts:
            raise DataError(
                f"{self.name} has no prompt to sample from",
                "look at data/raw/prompts.jsonl and data/quarantine",
            )
        if config.ptx_coef and not demonstrations:
            raise DataError(f"{self.name}.ptx_coef is above 0, but there are no demonstrations")
        self.policy, self.reference, self.tokenizer = policy, reference, tokenizer
        self.config, self.precision, self.demonstrations = config, precision, demonstrations
        self.device = policy.device.type
        self.micro = MicroBatches(self.name, config.micro_batch_size)
        self.passes = Passes(
            self.device, precision, config.sampling.temperature, self.micro, self.together, policy
        )
        self.engine = make_engine(policy, tokenizer, config, precision)
        self.collector = Collector(self.engine, rewards, self.prompts, self.group_size, self.key, self.micro)
        self.selection = Selection(
            policy, reference, self.engine, rewards, self.passes, self.held_out, config, self.key
        )
        self.order = Order(len(self.prompts), config.batch_size * self.together // self.group_size, self.key)
        self.updates = config.inner_epochs * config.minibatches
        self.optimisation = Optimisation(policy, config, config.steps * self.updates)
        self.controller = self.make_controller()
        self.constant = 0
        self.kl_stop = config.kl_stop if isinstance(config, PolicyGradientConfig) else 0.0
        self.gap = gap_of(config)
        save_memory(policy, config)

    @property
    def group_size(self) -> int:
        """Completions a prompt."""
        return 1

    def make_controller(self) -> FixedKL:
        """What sets beta from step to step."""
        return controller_of(self.config)

    @abstractmethod
    def collect(self, step: int) -> tuple[E, dict[str, float]]:
        """Samples and scores the rollout batch of 0-based `step`, and what it says about the policy."""

    @abstractmethod
    def parts(self, experience: E, rows: Sequence[int], step: int) -> Iterator[Part]:
        """Losses and figures of one update on some rows, micro-batch by micro-batch; they add up.

        Of several processes each gives those of its share.
        """

    def train(self, checkpoints: Checkpoints, recorder: Recorder) -> dict[str, Any]:
        """Runs `config.steps` rollout batches, from the last checkpoint if there is one (which may lie in the
        middle of a batch's updates); leaves the policy with the weights that were chosen.

        Where several processes share the training, each samples, scores and learns from its share; all of
        them hold the whole rollout batch, so that advantages are those of one process.

        Returns:
            Figures for the stage's metrics: `out_of_memory` with the sizes that fitted, or none.

        Raises:
            TrainingError: a loss became NaN, the reward model tells nothing apart, or a single example does
                not fit into memory.
            StopRequested: asked to end; a checkpoint was saved.
        """
        total = self.config.steps
        start, learning = 0, None
        if found := checkpoints.latest():
            start, state = found
            learning = self._load(state)
        for _, optimisation in self.trained().values():
            ranks().copy_from_main(optimisation.replicated)
        recorder.resume(start)
        modules = [module for module, _ in self.trained().values()]
        with training(*modules), closing(self.engine):
            for step in range(start, total):
                if learning is None:
                    with gathered(*modules):
                        learning = self._begin(step)
                while not learning.finished:
                    self._pause(checkpoints, recorder, step, learning)
                    self.advance(learning, step)
                figures = {**learning.figures, **learning.means()}
                self.controller.update(figures.get("objective/kl", 0.0), len(learning.experience))
                if self.selection.due(step + 1):
                    with gathered(self.policy):
                        self._push(step + 1)
                        figures.update(self.selection.look(step + 1))
                recorder.log(step + 1, total, {**figures, **self.micro.figures()})
                learning = None
                self._pause(checkpoints, recorder, step + 1)
        self.selection.restore()
        self.policy.eval()
        return self.micro.outcome

    def advance(self, learning: Learning[E], step: int) -> None:
        """The next update of the inner epochs over one rollout batch."""
        config, experience = self.config, learning.experience
        for module, _ in self.trained().values():
            module.train()
        size = config.batch_size // config.minibatches
        units = len(experience) // self.together
        each = -(-units // size)  # updates an epoch
        epoch, number = divmod(learning.done, each)
        order = permutation((*self.key, step, "inner", epoch), units)
        chosen = order[number * size : (number + 1) * size]
        rows = [unit * self.together + i for unit in chosen for i in range(self.together)]
        figures = self._update(experience, rows, step, epoch * config.minibatches + number)
        learning.done += 1
        learning.epoch_kl += figures.get("approx_kl", 0.0) / each
        for name, value in figures.items():
            learning.totals[name] = learning.totals.get(name, 0.0) + value
        if number + 1 == each:
            far = bool(self.kl_stop) and learning.epoch_kl > self.kl_stop
            learning.finished = far or epoch + 1 == config.inner_epochs
            learning.epoch_kl = 0.0

    def trained(self) -> dict[str, tuple[nn.Module, Optimisation]]:
        """What is trained, and by what, by the name that messages give it."""
        return {self.name: (self.policy, self.optimisation)}

    def learns(self, step: int) -> bool:
        """True in steps that change the policy."""
        return True

    def apply(self, number: int, step: int) -> dict[str, float]:
        """Applies the gradients of the training's 0-based update `number`; norm and rate."""
        norm, rate = self.optimisation.step(number)
        return {"grad_norm": norm, "learning_rate": rate}

    def _push(self, version: int) -> None:
        """Gives the engine the policy's weights after `version` rollout batches, unless it has them."""
        if self.engine.version != version:
            self.engine.update(self.policy, version)

    def _begin(self, step: int) -> Learning[E]:
        self._push(step)
        experience, figures = self.collect(step)
        self.constant = self.constant + 1 if figures.get("constant") else 0
        if self.constant == CONSTANT_LIMIT:
            raise TrainingError(
                f"{self.name}: the reward model scored every completion the same in {CONSTANT_LIMIT} rollout "
                f"batches in a row, up to step {step + 1}: nothing can be learned from it",
                f"look at the reward model's accuracy and at {self.name}.score_clip, and whether the policy "
                "still writes different completions (the figures `unique` and `entropy`)",
            )
        return Learning(experience, figures)

    def _update(self, experience: E, rows: Sequence[int], step: int, update: int) -> dict[str, float]:
        """One optimiser step on some rows of the rollout batch."""
        units = len(rows) // self.together
        loss, figures = accumulated(
            lambda size: self._losses(experience, rows, step, update), self.micro.passes, units, self._clear
        )
        check_finite(loss, self.name, step + 1)
        with room_for_optimiser(self.name):
            applied = self.apply(step * self.updates + update, step)
        check_finite(sum(applied.values()), self.name, step + 1)
        return {**figures, **applied}

    def _losses(self, experience: E, rows: Sequence[int], step: int, update: int) -> Iterator[Part]:
        """The parts of an update, and of the demonstrations beside it."""
        yield from self.parts(experience, rows, step)
        if self.config.ptx_coef and self.learns(step):
            order = permutation((*self.key, step, "ptx", update), len(self.demonstrations))
            shown = [self.demonstrations[i] for i in order[: len(rows)]]
            yield from demonstrate(
                self.policy, self.tokenizer, shown, self.config, self.precision, self.micro.passes.size
            )

    def _clear(self) -> None:
        """Drops the gradients of an update that did not fit."""
        for _, optimisation in self.trained().values():
            optimisation.clear()

    def policy_logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies (B, T) under the policy, without gradient."""
        with torch.no_grad():
            logprobs, entropy = self.passes.in_groups(
                batch, lambda part: self.passes.logprobs(self.policy, part, with_entropy=True)
            )
        return logprobs, entropy

    def reference_logprobs(self, batch: Batch) -> Tensor:
        """Log-probs (B, T) under the reference, without gradient."""
        with reference_mode(self.reference):
            return self.passes.whole(self.reference, batch)

    def _pause(
        self, checkpoints: Checkpoints, recorder: Recorder, step: int, learning: Learning[E] | None = None
    ) -> None:
        """Saves a checkpoint, when one is due or a stop was asked for, after `step` whole steps and the
        updates that `learning` has behind it; then stops if asked to."""
        self.micro.tell(recorder, step + (learning is not None))
        stop, total = ranks().from_main(recorder.stop_requested()), self.config.steps
        if stop or (step < total and checkpoints.due()):
            part = 0 if learning is None else learning.done + 1
            recorder.checkpoint(step, checkpoints.save(step, self._state(learning), part))
        if stop:
            where = "" if learning is None else f" and {learning.done} updates of the next"
            raise StopRequested(
                f"{self.name} stopped after step {step} of {total}{where}; run again to continue"
            )

    def _state(self, learning: Learning[E] | None) -> dict[str, Any]:
        state: dict[str, Any] = {
            "controller": self.controller.state_dict(),
            "constant": self.constant,
            "best": self.selection.best,
            "looks": self.selection.looks,
            "micro_batches": self.micro.state_dict(),
        }
        for name, (module, optimisation) in self.trained().items():
            state[name] = {"weights": trainable_state(module), "optimiser": optimisation.state_dict()}
        if learning is not None:
            state["learning"] = {**vars(learning), "experience": learning.experience.state_dict()}
        return state

    def _load(self, state: dict[str, Any]) -> Learning[E] | None:
        for name, (module, optimisation) in self.trained().items():
            load_trainable(module, state[name]["weights"], name)
            optimisation.load_state_dict(state[name]["optimiser"])
        self.controller.load_state_dict(state["controller"])
        self.constant = state["constant"]
        self.micro.load_state_dict(state["micro_batches"])
        self.selection.best, self.selection.looks = state["best"], list(state["looks"])
        if "learning" not in state:
            return None
        kept = state["learning"]
        experience = self.experience.from_state(kept["experience"], self.device)
        return Learning(**{**kept, "experience": experience})
