"""Aliases and tags in the model registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from prefloop.evaluation.promotion import Decision, Standing, Verdict, score
from tasks.support.mlflow_store import Store
from tasks.support.model_delivery import KEY_TAG, find_version
from tasks.support.workspace import slug

CHAMPION, CHALLENGER = "champion", "challenger"


@dataclass(frozen=True)
class Registry:
    """One registered model.

    Attributes:
        store: where it is.
        name: its name.
    """

    store: Store
    name: str

    def standing(self) -> Standing | None:
        """What is known of the present champion; None without one."""
        version = self._by_alias(CHAMPION)
        if version is None:
            return None
        tags = version.tags
        return Standing(
            name=f"version {version.version} ({slug(tags.get('prefloop.stage', 'unknown'))})",
            key=tags.get(KEY_TAG, ""),
            score=float(tags.get("prefloop.score", "nan")),
            measure=tags.get("prefloop.measure", ""),
            prompts=tags.get("prefloop.prompts", ""),
        )

    def versions(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Policy -> registered version, for the policies whose stage key has one."""
        found = {policy: find_version(self.store, self.name, key) for policy, key in keys.items()}
        return {policy: str(version.version) for policy, version in found.items() if version is not None}

    def apply(
        self,
        decision: Decision,
        versions: Mapping[str, str],
        figures: Mapping[str, Mapping[str, object]],
        prompts: str,
    ) -> None:
        """Sets aliases, and on each candidate's version the figures and the reasons. Doing it twice changes
        nothing."""
        client = self.store.client
        for verdict in decision.verdicts:
            version = versions.get(verdict.policy)
            if version is None:
                continue
            value, measure = score(figures[verdict.policy])
            tags = {
                "prefloop.promotion": _word(verdict, decision),
                "prefloop.reasons": "; ".join(check.reason for check in verdict.checks),
                "prefloop.decision": "; ".join(decision.reasons),
                "prefloop.score": repr(value),
                "prefloop.measure": measure,
                "prefloop.prompts": prompts,
            }
            for name, text in tags.items():
                client.set_model_version_tag(self.name, version, name, text[:5000])
        if decision.champion:
            client.set_registered_model_alias(self.name, CHAMPION, versions[decision.champion])
        if decision.challenger:
            client.set_registered_model_alias(self.name, CHALLENGER, versions[decision.challenger])
        elif decision.champion and self._by_alias(CHALLENGER) is not None:
            client.delete_registered_model_alias(self.name, CHALLENGER)

    def _by_alias(self, alias: str) -> ModelVersion | None:
        try:
            return self.store.client.get_model_version_by_alias(self.name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def _word(verdict: Verdict, decision: Decision) -> str:
    if verdict.policy == decision.champion:
        return CHAMPION
    if verdict.policy == decision.challenger:
        return CHALLENGER
    return "passed" if verdict.passed else "failed"
