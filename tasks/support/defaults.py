"""Which parameters of a pipeline run its page in MLflow shows. Delivery alone imports this: a stage that did
would run again with every edit to another stage's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache

from prefloop.config.params import Params
from prefloop.config.validate import DEFAULTS as EXPECTATIONS
from tasks.support.flatten import flatten
from tasks.support.redact import redact_all


def unusual(params: Mapping[str, str]) -> dict[str, str]:
    """The seed, and what is no default of prefloop's: MLflow takes seconds for a hundred runs with all."""
    usual = defaults()
    return {name: value for name, value in params.items() if name == "seed" or value != usual.get(name)}


@lru_cache(maxsize=1)
def defaults() -> Mapping[str, str]:
    """Parameters as they are where params.yaml does not say otherwise; policies have none."""
    values = asdict(replace(Params(), policies={}))
    values["validate"]["expectations"] = {name: asdict(one) for name, one in EXPECTATIONS.items()}
    return redact_all(flatten(values))
