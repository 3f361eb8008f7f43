"""What is queued: mostly runs that find nothing new, some with parameters of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PPO_EVERY, SFT_EVERY = 20, 40
PPO_STAGES = ("ppo", "report")
SFT_STAGES = ("sft", "reward", "ppo", "dpo", "report")


@dataclass(frozen=True)
class Order:
    """One run that is asked of the deployment.

    Attributes:
        number: its place in the queue, from 0.
        changes: parameters of this run alone.
        stages: what these re-run; nothing else of the pipeline has to.
    """

    number: int
    changes: dict[str, float]
    stages: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the flow run."""
        return f"order-{self.number}"


def orders(count: int) -> list[Order]:
    """A twentieth has a KL coefficient that no other run has, a fortieth such a learning rate."""
    found = []
    for number in range(count):
        if number % PPO_EVERY == 3:
            found.append(Order(number, {"ppo.kl_coef": round(0.2 + number / 10000, 4)}, PPO_STAGES))
        elif number % SFT_EVERY == 8:
            found.append(Order(number, {"sft.learning_rate": round(0.002 + number / 1e6, 6)}, SFT_STAGES))
        else:
            found.append(Order(number, {}, ()))
    return found


def in_words(queue: list[Order]) -> str:
    """What a reader has to know of a queue."""
    own = {stages: sum(order.stages == stages for order in queue) for stages in (PPO_STAGES, SFT_STAGES)}
    return (
        f"{len(queue)} runs: {len(queue) - sum(own.values())} as the workspace stands, {own[PPO_STAGES]} "
        f"with a `ppo.kl_coef` of their own, {own[SFT_STAGES]} with an `sft.learning_rate` of their own"
    )


def parameters(order: Order) -> dict[str, Any]:
    """Of the flow run."""
    return {"changes": order.changes} if order.changes else {}
