"""KTO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.direct import DirectConfig
from prefloop.config.parse import at_least


@dataclass(frozen=True)
class KTOConfig(DirectConfig):
    """Section `kto`; `batch_size` counts completions, at least 2: the reference point needs mismatched
    pairs.

    The defaults are the paper's (Ethayarajh et al. 2024).

    Attributes:
        data: "comparisons", each completion of which is desirable or not by its rank; "labels", rows whose
            completion was judged alone; "auto" takes both.
        beta: strength of the tie to the SFT policy.
        desirable_weight, undesirable_weight: lambda_D and lambda_U. The paper keeps (weight x count) of
            desirable over undesirable completions between 1 and 4/3.
    """

    data: Literal["auto", "comparisons", "labels"] = "auto"
    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    learning_rate: float = 5e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("beta", self.beta, 0, strict=True)
        at_least("desirable_weight", self.desirable_weight, 0, strict=True)
        at_least("undesirable_weight", self.undesirable_weight, 0, strict=True)
        at_least("batch_size", self.batch_size, 2)
