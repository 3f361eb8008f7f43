"""The whole of params.yaml, for commands that check or show every section; a stage reads its own alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefloop.config.base import BaseConfig
from prefloop.config.compute import ComputeConfig
from prefloop.config.dpo import DPOConfig
from prefloop.config.evaluate import EvaluateConfig
from prefloop.config.grpo import GRPOConfig
from prefloop.config.ingest import IngestConfig
from prefloop.config.judge import JudgeConfig
from prefloop.config.kto import KTOConfig
from prefloop.config.online_dpo import OnlineDPOConfig
from prefloop.config.orpo import ORPOConfig
from prefloop.config.parse import parse
from prefloop.config.policies import check_policies
from prefloop.config.ppo import PPOConfig
from prefloop.config.promote import PromoteConfig
from prefloop.config.read import read_yaml
from prefloop.config.reinforce import ReinforceConfig
from prefloop.config.rejection import RejectionConfig
from prefloop.config.report import ReportConfig
from prefloop.config.resources import ResourcesConfig, check_stages
from prefloop.config.reward import RewardConfig
from prefloop.config.rloo import RLOOConfig
from prefloop.config.sft import SFTConfig
from prefloop.config.simpo import SimPOConfig
from prefloop.config.tracking import TrackingConfig
from prefloop.config.validate import ValidateConfig
from prefloop.errors import ConfigError

METHODS: dict[str, type[Any]] = {
    "ppo": PPOConfig,
    "dpo": DPOConfig,
    "kto": KTOConfig,
    "orpo": ORPOConfig,
    "simpo": SimPOConfig,
    "grpo": GRPOConfig,
    "rloo": RLOOConfig,
    "reinforce": ReinforceConfig,
    "online_dpo": OnlineDPOConfig,
    "rejection": RejectionConfig,
}
"""Method -> type of its section. A run trains the policies that `policies` lists under it."""

SAMPLING = ("ppo", "grpo", "rloo", "reinforce", "online_dpo", "rejection", "evaluate")
"""Sections that say how completions are sampled."""


@dataclass(frozen=True)
class Params:
    """Every section of params.yaml.

    Attributes:
        policies: method -> name -> knobs that differ from the method's section.
    """

    seed: int = 0
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    ingest: IngestConfig = field(default_factory=IngestConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    base: BaseConfig = field(default_factory=BaseConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    policies: dict[str, dict[str, dict[str, Any]]] = field(
        default_factory=lambda: {"ppo": {"ppo": {}}, "dpo": {"dpo": {}}}
    )
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(steps=1))
    dpo: DPOConfig = field(default_factory=DPOConfig)
    kto: KTOConfig = field(default_factory=KTOConfig)
    orpo: ORPOConfig = field(default_factory=ORPOConfig)
    simpo: SimPOConfig = field(default_factory=SimPOConfig)
    grpo: GRPOConfig = field(default_factory=lambda: GRPOConfig(steps=1))
    rloo: RLOOConfig = field(default_factory=lambda: RLOOConfig(steps=1))
    reinforce: ReinforceConfig = field(default_factory=lambda: ReinforceConfig(steps=1))
    online_dpo: OnlineDPOConfig = field(default_factory=lambda: OnlineDPOConfig(steps=1))
    rejection: RejectionConfig = field(default_factory=RejectionConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    promote: PromoteConfig = field(default_factory=PromoteConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    def __post_init__(self) -> None:
        if self.judge.kind == "gold" and self.ingest.source != "world":
            raise ValueError(
                "judge.kind is gold, but only ingest.source world has a gold judge: "
                "set judge.kind to reward_model and ingest.judge_share above 0"
            )
        if self.judge.kind == "reward_model" and self.ingest.judge_share == 0:
            raise ValueError(
                "judge.kind is reward_model, but ingest.judge_share is 0: it would have no comparisons"
            )
        longest = {name: getattr(self, name).sampling for name in SAMPLING}
        for name, sampling in longest.items():
            if not self.base.model and sampling.max_new_tokens >= self.base.architecture.context:
                raise ValueError(
                    f"{name}.sampling.max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt "
                    f"in base.architecture.context {self.base.architecture.context}"
                )


def parse_params(values: Mapping[str, Any]) -> Params:
    """Checks every section and how they fit together.

    Raises:
        ConfigError: see `prefloop.config.parse.parse`; keys are named as in params.yaml.
    """
    try:
        params = parse(Params, values, "params")
    except ConfigError as error:
        raise ConfigError(
            error.message.replace("params.", "", 1), error.remedy.replace("params.", "", 1)
        ) from error
    check_policies(values, METHODS)
    check_stages(values, params.resources, METHODS)
    return params


def load_params(path: Path | str = "params.yaml") -> Params:
    """Reads and checks a whole params file."""
    return parse_params(read_yaml(path))
