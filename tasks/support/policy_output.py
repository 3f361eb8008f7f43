"""What every stage that trains a policy writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.models.adapters import merge
from prefloop.models.saving import save_model
from tasks.support.looks import write_looks
from tasks.support.stage import Stage
from tasks.support.training import card


def write_policy(
    stage: Stage[Any],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    what: str,
    data: str,
    looks: Iterable[Mapping[str, Any]],
) -> None:
    """Writes models/POLICY, adapters merged, and what it answered on its way."""
    write_looks(stage, looks)
    with stage.output(f"models/{stage.part}") as folder:
        save_model(merge(policy), tokenizer, folder, card(stage, what, [data]))
