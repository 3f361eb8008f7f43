"""SimPO."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.direct import PairwiseConfig
from prefloop.config.parse import at_least


@dataclass(frozen=True)
class SimPOConfig(PairwiseConfig):
    """Section `simpo`; `batch_size` counts prompts, each with all its pairs.

    The defaults are the paper's for Llama-3-Base (Meng et al. 2024): 0.5 for gamma / beta.

    Attributes:
        beta: scale of the reward, the chosen or rejected completion's log-prob a token.
        margin: gamma, by how much the chosen reward has to be ahead.
        nll_coef: weight of the chosen completion's negative log-likelihood a token.
    """

    beta: float = 2.0
    margin: float = 1.0
    nll_coef: float = 0.0
    learning_rate: float = 6e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("beta", self.beta, 0, strict=True)
        at_least("margin", self.margin, 0)
        at_least("nll_coef", self.nll_coef, 0)
