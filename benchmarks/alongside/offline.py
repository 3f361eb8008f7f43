"""prefloop's side of trainings on fixed data, and what the peer is given so that it sees the same steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.alongside.material import SEED, Material
from benchmarks.alongside.side import Side
from benchmarks.alongside.table import Row
from benchmarks.peers.recording import Noting, Recording
from prefloop.config.dpo import DPOConfig
from prefloop.config.kto import KTOConfig
from prefloop.config.orpo import ORPOConfig
from prefloop.config.reward import RewardConfig
from prefloop.config.sft import SFTConfig
from prefloop.config.simpo import SimPOConfig
from prefloop.data.batching import Order
from prefloop.data.comparisons import Ranking
from prefloop.data.unpaired import Unpaired
from prefloop.models.loading import load_policy
from prefloop.models.reward_model import RewardModel
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.direct import fit_comparisons
from prefloop.training.dpo import fit_dpo
from prefloop.training.kto import encode_unpaired, fit_kto, kto_reference, training_steps
from prefloop.training.language_model import encode_demonstrations, finetune
from prefloop.training.noise import permutation
from prefloop.training.orpo import orpo_part
from prefloop.training.pairs import encode_comparisons
from prefloop.training.recorder import Silent
from prefloop.training.reference import reference_logprobs
from prefloop.training.reward import encode_rankings, fit_reward_model
from prefloop.training.shared_prompts import with_shared_prompts
from prefloop.training.simpo import simpo_part

COMMON = {
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "max_grad_norm": 1.0,
    "batch_size": 8,
    "micro_batch_size": 0,
    "max_length": 128,
}
"""Keys of every row's section: a rate at which losses move, and clipping that acts."""


def section(row: Row, steps: int) -> dict[str, Any]:
    """A row's whole section."""
    return {**COMMON, **row.section, "steps": steps}


CONFIGS: dict[str, Any] = {
    "sft": SFTConfig,
    "dpo": DPOConfig,
    "reward": RewardConfig,
    "kto": KTOConfig,
    "orpo": ORPOConfig,
    "simpo": SimPOConfig,
}


class Reporting(Silent):
    """A recorder that ends a recording's step with each of the trainer's."""

    def __init__(self, recording: Noting) -> None:
        super().__init__()
        self.recording = recording

    def log(self, step: int, total: int, values: Any) -> None:
        self.recording.add(values["loss"])
        self.recording.step(values["grad_norm"])


def run(side: Side, recording: Noting | None = None) -> Noting:
    """Trains and returns what was recorded, by default all that a comparison looks at."""
    recording = recording or Recording()
    trainings = {
        "sft": _sft,
        "dpo": _dpo,
        "orpo": _without_reference,
        "simpo": _without_reference,
        "reward": _reward,
        "kto": _kto,
    }
    trainings[side.row.method](side, recording)
    return recording


def _sft(side: Side, recording: Noting) -> None:
    model, tokenizer = load_policy(side.material.policy, device=side.device)
    shown = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in side.material.conversations]
    rows, _ = encode_demonstrations(shown, tokenizer, side.section["max_length"])
    with recording.watching(model):
        finetune(model, tokenizer, rows, SFTConfig(**side.section), **_run(side, recording))


def _dpo(side: Side, recording: Noting) -> None:
    config = DPOConfig(**side.section)
    model, tokenizer = load_policy(side.material.policy, device=side.device)
    comparisons, _ = encode_comparisons(_rankings(side), tokenizer, config)
    comparisons = with_shared_prompts(comparisons, model, tokenizer, config)
    reference = reference_logprobs(model, tokenizer, comparisons, side.precision)
    with recording.watching(model):
        fit_dpo(model, tokenizer, comparisons, reference, config, **_run(side, recording))


def _without_reference(side: Side, recording: Noting) -> None:
    config = CONFIGS[side.row.method](**side.section)
    model, tokenizer = load_policy(side.material.policy, device=side.device)
    comparisons, _ = encode_comparisons(_rankings(side), tokenizer, config)
    method = side.row.method
    part = orpo_part(config) if method == "orpo" else simpo_part(config)
    with recording.watching(model):
        fit_comparisons(model, tokenizer, comparisons, part, config, method, **_run(side, recording))


def _reward(side: Side, recording: Noting) -> None:
    config = RewardConfig(**side.section)
    model = RewardModel.load(side.material.reward, device=side.device, precision=side.precision)
    rows = encode_rankings(model, _rankings(side), config.max_length)
    run = _run(side, recording)
    del run["precision"]
    with recording.watching(model.model):
        fit_reward_model(model, rows, config, **run)


def _kto(side: Side, recording: Noting) -> None:
    config = KTOConfig(**side.section)
    model, tokenizer = load_policy(side.material.policy, device=side.device)
    rows, _ = encode_unpaired(unpaired(side.material), tokenizer, config)
    steps = training_steps(rows, config, seed=SEED)
    reference = kto_reference(model, tokenizer, rows, steps, side.precision)
    with recording.watching(model):
        fit_kto(model, tokenizer, rows, steps, reference, config, **_run(side, recording))


def _rankings(side: Side) -> list[Ranking]:
    margins = "margins" in side.row.options
    return [
        Ranking(
            row["prompt"],
            [row["chosen"], row["rejected"]],
            [0, 1],
            margin=row["margin"] if margins else 0.0,
        )
        for row in side.material.conversations
    ]


def _run(side: Side, recording: Noting) -> dict[str, Any]:
    return {
        "seed": SEED,
        "precision": side.precision,
        "checkpoints": Checkpoints(side.scratch / "checkpoints", 1e9),
        "recorder": Reporting(recording),
    }


def unpaired(material: Material) -> list[Unpaired]:
    """A completion a prompt, desirable and undesirable ones mixed unevenly."""
    return [
        Unpaired(row["prompt"], row["rejected" if number % 3 == 0 else "chosen"], number % 3 != 0)
        for number, row in enumerate(material.conversations)
    ]


def peer_rows(side: Side) -> list[dict[str, Any]]:
    """The rows of all steps, one step after the other, as the peer's data set wants them."""
    rows, method = side.material.conversations, side.row.method
    order = Order(len(rows), side.section["batch_size"], (SEED, method))
    steps = [list(order.step(step)) for step in range(side.section["steps"])]
    if method == "sft":
        return [{"prompt": rows[i]["prompt"], "completion": rows[i]["chosen"]} for s in steps for i in s]
    if method == "kto":
        return _kto_rows(side, steps)
    keys = ["prompt", "chosen", "rejected", *(["margin"] if "margins" in side.row.options else [])]
    return [{key: rows[i][key] for key in keys} for s in steps for i in s]


def _kto_rows(side: Side, steps: Sequence[list[int]]) -> list[dict[str, Any]]:
    """Rows in the order in which TRL pairs each prompt with the answer BEFORE it just as prefloop does.

    prefloop walks a keyed ring of the step's rows and takes the next answer: the same ring backwards.
    """
    rows = unpaired(side.material)
    given = []
    for step, batch in enumerate(steps):
        ring = [batch[i] for i in permutation((SEED, "kto", "mismatch", step), len(batch))]
        given += [
            {"prompt": rows[i].prompt, "completion": rows[i].completion, "label": rows[i].desirable}
            for i in reversed(ring)
        ]
    return given


def job(side: Side) -> dict[str, Any]:
    """What the peer's script needs for this row."""
    folder = side.material.reward if side.row.method == "reward" else side.material.policy
    return {
        "name": side.row.name,
        "method": side.row.method,
        "model": str(folder),
        "rows": peer_rows(side),
        "steps": side.section["steps"],
        "section": side.section,
        "peer": side.row.peer,
        "options": list(side.row.options),
        "scratch": str(side.scratch / "peer"),
    }
