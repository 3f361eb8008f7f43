"""DPO and the losses of its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.direct import PairwiseConfig
from prefloop.config.parse import at_least, between


@dataclass(frozen=True)
class DPOConfig(PairwiseConfig):
    """Section `dpo`; `batch_size` counts prompts, each with all its pairs.

    Attributes:
        loss: of a pair's gap of implicit rewards: "sigmoid" (DPO), "robust" (unbiased under flipped labels),
            "ipo" (a squared distance from a finite gap) or "hinge" (SLiC-HF).
        beta: strength of the tie to the SFT policy.
        label_smoothing: share of labels taken to be flipped (cDPO, Mitchell 2023; or robust DPO, Chowdhury et
            al. 2024).
        ipo_logprobs: what `ipo` regresses: a completion's log-prob, the "sum" over its tokens (the paper's),
            or their "mean" (the common implementation's).
        nll_coef: weight of the chosen completion's negative log-likelihood a token (Pang et al. 2024).
    """

    loss: Literal["sigmoid", "robust", "ipo", "hinge"] = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    ipo_logprobs: Literal["sum", "mean"] = "sum"
    nll_coef: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("beta", self.beta, 0, strict=True)
        between("label_smoothing", self.label_smoothing, 0, 0.499)
        at_least("nll_coef", self.nll_coef, 0)
        if self.label_smoothing and self.loss in ("ipo", "hinge"):
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, but the loss {self.loss} has none: "
                "set it to 0, or loss to sigmoid or robust"
            )
        if self.ipo_logprobs != "sum" and self.loss != "ipo":
            raise ValueError(f"ipo_logprobs is {self.ipo_logprobs}, but loss is {self.loss}: set loss to ipo")
