"""Every trainer at a tiny size behind one signature, so that a test can ask the same of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.config.direct import PairwiseConfig
from prefloop.config.dpo import DPOConfig
from prefloop.config.grpo import GRPOConfig
from prefloop.config.kto import KTOConfig
from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.config.orpo import ORPOConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.reinforce import ReinforceConfig
from prefloop.config.rejection import RejectionConfig
from prefloop.config.reward import RewardConfig
from prefloop.config.rloo import RLOOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.config.sft import SFTConfig
from prefloop.config.simpo import SimPOConfig
from prefloop.config.training import LoraConfig, TrainingConfig
from prefloop.data.comparisons import Ranking
from prefloop.data.unpaired import Unpaired
from prefloop.models.adapters import attach, reference_of
from prefloop.models.critic import make_critic
from prefloop.models.reward_model import RewardModel
from prefloop.rewards.sources import LearnedReward, MissingEnd, Overlong, RewardSum
from prefloop.training.checkpoints import Checkpoints
from prefloop.training.direct import PairsPart, Run, fit_comparisons
from prefloop.training.dpo import fit_dpo
from prefloop.training.experience import Experience, Learning
from prefloop.training.groups import GroupTrainer, GRPOTrainer, ReinforceTrainer, RLOOTrainer
from prefloop.training.kto import encode_unpaired, fit_kto, kto_reference, training_steps
from prefloop.training.language_model import encode_demonstrations, finetune, pack_documents, pretrain
from prefloop.training.looks import Looks
from prefloop.training.on_policy import OnPolicyTrainer
from prefloop.training.online_dpo import OnlineDPOTrainer
from prefloop.training.orpo import orpo_part
from prefloop.training.pairs import encode_comparisons
from prefloop.training.ppo import PPOTrainer
from prefloop.training.recorder import Recorder
from prefloop.training.reference import reference_logprobs
from prefloop.training.rejection import RejectionTrainer
from prefloop.training.reward import encode_rankings, fit_reward_model
from prefloop.training.shared_prompts import with_shared_prompts
from prefloop.training.simpo import simpo_part
from tests import tiny

Weights = dict[str, Tensor]
DEMONSTRATIONS = [
    {"prompt": question, "completion": tiny.ANSWERS[i % 3]} for i, question in enumerate(tiny.QUESTIONS * 3)
]
# Three of the four answers to each question; earlier ones are better, and the last two tie.
SHOWN = [[(i + k) % 4 for k in range(3)] for i in range(3 * len(tiny.QUESTIONS))]
RANKINGS = [
    Ranking(question, [tiny.ANSWERS[a] for a in shown], [min(a, 2) for a in shown])
    for question, shown in zip(tiny.QUESTIONS * 3, SHOWN, strict=True)
]
# Two of three answers are desirable.
MARKED = [Unpaired(question, tiny.ANSWERS[i % 4], i % 3 > 0) for i, question in enumerate(tiny.QUESTIONS * 4)]
PROMPTS = [{"prompt": question} for question in tiny.QUESTIONS * 4]
# A large epsilon makes AdamW's step smooth in the gradient, so that rounding stays rounding.
SMOOTH: dict[str, Any] = {"learning_rate": 0.1, "adam_eps": 1.0, "max_grad_norm": 0.0}


def weights(*modules: torch.nn.Module) -> Weights:
    """Copies of all parameters."""
    return {f"{i}.{n}": p.detach().clone() for i, m in enumerate(modules) for n, p in m.named_parameters()}


def _policy(config: TrainingConfig, **shape: Any) -> tuple[PreTrainedModel, Any]:
    tokens = tiny.tokenizer()
    return attach(tiny.model(tokens, **shape), config.lora, seed=0), tokens


def base(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    config = TrainingConfig(**{"batch_size": 4, "steps": 6, "learning_rate": 3e-3, **changes})
    model, tokens = _policy(config, width=width)
    blocks = pack_documents(tiny.TEXTS * 8, tokens, 16)
    pretrain(
        model,
        tokens,
        blocks,
        config,
        seed=0,
        precision="fp32",
        checkpoints=Checkpoints(folder, every),
        recorder=recorder,
    )
    return weights(model)


def sft(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    config = SFTConfig(**{"batch_size": 8, "epochs": 2, "learning_rate": 3e-3, "max_length": 48, **changes})
    model, tokens = _policy(config, width=width)
    rows, _ = encode_demonstrations(DEMONSTRATIONS, tokens, 48)
    finetune(
        model,
        tokens,
        rows,
        config,
        seed=0,
        precision="fp32",
        checkpoints=Checkpoints(folder, every),
        recorder=recorder,
    )
    return weights(model)


def sft_with_adapter(folder: Path, recorder: Recorder, every: float = 1e9, **changes: Any) -> Weights:
    lora = LoraConfig(rank=2, alpha=4.0, dropout=0.3)
    return sft(folder, recorder, every, lora=lora, **changes)


def sft_packed(folder: Path, recorder: Recorder, every: float = 1e9, **changes: Any) -> Weights:
    return sft(folder, recorder, every, packing=True, neftune_alpha=5.0, average="sequence", **changes)


def reward(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    config = RewardConfig(**{"batch_size": 8, "epochs": 2, "learning_rate": 3e-3, **changes})
    trunk = tiny.saved(folder.parent / f"trunk-{width}", width=width)
    model = RewardModel.create(trunk, seed=0)
    model.model = attach(model.model, config.lora, seed=0, task="SEQ_CLS")
    rows = encode_rankings(model, RANKINGS, 48)
    fit_reward_model(model, rows, config, seed=0, checkpoints=Checkpoints(folder, every), recorder=recorder)
    return weights(model)


def reward_with_adapter(folder: Path, recorder: Recorder, every: float = 1e9, **changes: Any) -> Weights:
    return reward(folder, recorder, every, lora=LoraConfig(rank=2, alpha=4.0, dropout=0.3), **changes)


DIRECT: dict[str, Any] = {"batch_size": 8, "epochs": 2, "learning_rate": 3e-3, "max_length": 48}


def _run(folder: Path, recorder: Recorder, every: float) -> Run:
    return Run(seed=0, precision="fp32", checkpoints=Checkpoints(folder, every), recorder=recorder)


def dpo(
    folder: Path,
    recorder: Recorder,
    every: float = 1e9,
    width: int = 16,
    seen: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Weights:
    """Looks at the policy where `seen`, which takes the looks' rows, is given."""
    config = DPOConfig(**{**DIRECT, **changes})
    model, tokens = _policy(config, width=width)
    comparisons, _ = encode_comparisons(RANKINGS, tokens, config)
    comparisons = with_shared_prompts(comparisons, model, tokens, config)
    reference = reference_logprobs(model, tokens, comparisons, "fp32")
    run = _run(folder, recorder, every)
    looks = Looks(model, tokens, PROMPTS[:3], SamplingConfig(max_new_tokens=6), config.looks, seed=0)
    if seen is not None:
        run["observer"] = looks
    fit_dpo(model, tokens, comparisons, reference, config, **run)
    if seen is not None:
        seen += looks.rows
    return weights(model)


def dpo_with_adapter(folder: Path, recorder: Recorder, every: float = 1e9, **changes: Any) -> Weights:
    return dpo(folder, recorder, every, lora=LoraConfig(rank=2, alpha=4.0, dropout=0.3), **changes)


def kto(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    config = KTOConfig(**{**DIRECT, **changes})
    model, tokens = _policy(config, width=width)
    rows, _ = encode_unpaired(MARKED, tokens, config)
    steps = training_steps(rows, config, seed=0)
    reference = kto_reference(model, tokens, rows, steps, "fp32", folder.parent / "reference")
    fit_kto(model, tokens, rows, steps, reference, config, **_run(folder, recorder, every))
    return weights(model)


def kto_with_adapter(folder: Path, recorder: Recorder, every: float = 1e9, **changes: Any) -> Weights:
    return kto(folder, recorder, every, lora=LoraConfig(rank=2, alpha=4.0, dropout=0.3), **changes)


def _pairwise(
    method: str,
    part: PairsPart,
    config: PairwiseConfig,
    folder: Path,
    recorder: Recorder,
    every: float,
    width: int,
) -> Weights:
    model, tokens = _policy(config, width=width)
    comparisons, _ = encode_comparisons(RANKINGS, tokens, config)
    fit_comparisons(model, tokens, comparisons, part, config, method, **_run(folder, recorder, every))
    return weights(model)


def orpo(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    config = ORPOConfig(**{**DIRECT, **changes})
    return _pairwise("orpo", orpo_part(config), config, folder, recorder, every, width)


def simpo(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    config = SimPOConfig(**{**DIRECT, **changes})
    return _pairwise("simpo", simpo_part(config), config, folder, recorder, every, width)


class SaysBlue:
    """1 for a completion with a "b" in it, 0 otherwise: a reward by rule, equal for many."""

    def score(self, prompts: Sequence[Any], completions: Sequence[str], ended: Sequence[bool]) -> Tensor:
        return torch.tensor([float("b" in text) for text in completions])


SIZES: dict[str, Any] = {
    "batch_size": 8,
    "steps": 5,
    "learning_rate": 3e-3,
    "sampling": SamplingConfig(max_new_tokens=8),
    "max_length": 48,
}
REWARD_MODELS: dict[int, RewardModel] = {}
"""By width; nothing trains them."""
LOOKS = {"select_every": 2, "select_prompts": 4, "select_kl": 100.0}


def materials(config: TrainingConfig, folder: Path, width: int = 16) -> dict[str, Any]:
    """Arguments that every on-policy trainer takes, and the model and reward model they were made of."""
    tokens = tiny.tokenizer()
    if width not in REWARD_MODELS:
        trunk = tiny.saved(folder.parent / f"trunk-{width}", width=width)
        REWARD_MODELS[width] = RewardModel.create(trunk, seed=1).eval()
    reward_model = REWARD_MODELS[width]
    model = tiny.model(tokens, width=width)
    rows, _ = encode_demonstrations(DEMONSTRATIONS, tokens, 48)
    sources = {"reward_model": (1.0, LearnedReward(reward_model)), "missing_eos": (1.0, MissingEnd())}
    return {
        "model": model,
        "reward_model": reward_model,
        "tokenizer": tokens,
        "rewards": RewardSum(sources),
        "prompts": PROMPTS,
        "config": config,
        "seed": 0,
        "demonstrations": rows,
    }


def with_policy(given: dict[str, Any]) -> dict[str, Any]:
    """The same with policy and reference in the model's place."""
    policy = attach(given.pop("model"), given["config"].lora, seed=0)
    del given["reward_model"]
    return {"policy": policy, "reference": reference_of(policy), **given}


def ppo_trainer(folder: Path, width: int = 16, **changes: Any) -> PPOTrainer:
    given = materials(config := PPOConfig(**{**SIZES, **LOOKS, **changes}), folder, width)
    critic = make_critic(config, given["model"], given["reward_model"], given["tokenizer"])
    return PPOTrainer(critic=critic, **with_policy(given))


def group_trainer(
    method: str, folder: Path, width: int = 16, rewards: RewardSum | None = None, **changes: Any
) -> GroupTrainer:
    config_of, trainer_of = METHODS[method]
    config = config_of(**{**SIZES, **LOOKS, "group_size": 4, **changes})
    given = with_policy(materials(config, folder, width))
    return trainer_of(**{**given, "rewards": rewards or given["rewards"]})


METHODS: dict[str, tuple[Callable[..., Any], Callable[..., GroupTrainer]]] = {
    "grpo": (GRPOConfig, GRPOTrainer),
    "rloo": (RLOOConfig, RLOOTrainer),
    "reinforce": (ReinforceConfig, ReinforceTrainer),
}


def learn(trainer: OnPolicyTrainer[Any], experience: Experience, step: int) -> dict[str, float]:
    """All updates on one rollout batch; their figures."""
    learning = Learning(experience, {})
    while not learning.finished:
        trainer.advance(learning, step)
    return learning.means()


def ppo(
    folder: Path,
    recorder: Recorder,
    every: float = 1e9,
    width: int = 16,
    seen: list[dict[str, Any]] | None = None,
    **changes: Any,
) -> Weights:
    """`seen` takes the rows of its looks."""
    trainer = ppo_trainer(folder, width, **changes)
    trainer.train(Checkpoints(folder, every), recorder)
    if seen is not None:
        seen += trainer.selection.looks
    return weights(trainer.policy, trainer.critic)


def ppo_shared(folder: Path, recorder: Recorder, every: float = 1e9, **changes: Any) -> Weights:
    return ppo(folder, recorder, every, critic="shared", kl_control="adaptive", ptx_coef=0.5, **changes)


def _group(
    method: str, folder: Path, recorder: Recorder, every: float, width: int, **changes: Any
) -> Weights:
    trainer = group_trainer(method, folder, width, **changes)
    trainer.train(Checkpoints(folder, every), recorder)
    return weights(trainer.policy)


def grpo(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    return _group("grpo", folder, recorder, every, width, **{"kl_control": "adaptive", **changes})


DAPO: dict[str, Any] = {
    "dynamic_sampling": True,
    "resample_limit": 1,
    "clip_range_high": 0.28,
    "normaliser": "tokens",
    "kl_coef": 0.0,
    "rewards": RewardSum({"rule": (1.0, SaysBlue()), "overlong": (0.1, Overlong(8, 4))}),
}
"""Yu et al. 2025, on a reward that many completions share."""


def dapo(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    return _group("grpo", folder, recorder, every, width, **{**DAPO, **changes})


def rloo(folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any) -> Weights:
    schedule = {"kl_control": "schedule", "kl_final": 0.3, "ptx_coef": 0.1}
    return _group("rloo", folder, recorder, every, width, **{**schedule, **changes})


def reinforce(
    folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any
) -> Weights:
    return _group("reinforce", folder, recorder, every, width, **{"group_size": 1, **changes})


def online_dpo_trainer(folder: Path, width: int = 16, **changes: Any) -> OnlineDPOTrainer:
    config = OnlineDPOConfig(**{**SIZES, **LOOKS, **changes})
    return OnlineDPOTrainer(**with_policy(materials(config, folder, width)))


def online_dpo(
    folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any
) -> Weights:
    trainer = online_dpo_trainer(folder, width, **{"labels": "sampled", **changes})
    trainer.train(Checkpoints(folder, every), recorder)
    return weights(trainer.policy)


def rejection_trainer(folder: Path, width: int = 16, **changes: Any) -> RejectionTrainer:
    sizes = {**SIZES, "steps": 0, "group_size": 3, "rounds": 2}
    given = materials(RejectionConfig(**{**sizes, **changes}), folder, width)
    return RejectionTrainer(
        given["model"], given["tokenizer"], given["rewards"], given["prompts"], given["config"], seed=0
    )


def rejection(
    folder: Path, recorder: Recorder, every: float = 1e9, width: int = 16, **changes: Any
) -> Weights:
    trainer = rejection_trainer(folder, width, **changes)
    trainer.train(Checkpoints(folder, every), recorder)
    return weights(trainer.policy)


ON_POLICY: dict[str, Callable[..., Weights]] = {
    f.__name__: f for f in (ppo, ppo_shared, grpo, dapo, rloo, reinforce, online_dpo)
}
"""Those that learn from what they sample, in inner epochs over each batch."""
TRAININGS: dict[str, Callable[..., Weights]] = {
    **{f.__name__: f for f in (base, sft, sft_packed, sft_with_adapter, reward, reward_with_adapter)},
    **{f.__name__: f for f in (dpo, dpo_with_adapter, kto, kto_with_adapter, orpo, simpo, rejection)},
    **ON_POLICY,
}


def perform(job: Mapping[str, Any], folder: Path, recorder: Recorder) -> Weights:
    """The training that a job names, with its changes: plain values, as JSON holds them."""
    changes = dict(job.get("changes", {}))
    if "lora" in changes:
        changes["lora"] = LoraConfig(**changes["lora"])
    return TRAININGS[job["training"]](folder, recorder, **changes)
