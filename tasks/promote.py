"""The step promote: applies the rules of `promote` to the evaluation and moves the registry's aliases.

Usage: python -m tasks.promote [--dry-run] [--policy NAME --why TEXT]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.config.promote import PromoteConfig
from prefloop.config.read import read_section, read_yaml
from prefloop.errors import ConfigError, WorkspaceError
from prefloop.evaluation.promotion import REFERENCES, Decision, Standing, decide
from prefloop.files import read_json, sha256_text, write_json
from tasks.deliver import deliver_once
from tasks.support.ending import ended_well
from tasks.support.flatten import without_nan
from tasks.support.keys import dvc_hash, locked_hashes
from tasks.support.mlflow_store import StoreAway, reached, read_config
from tasks.support.signals import StopFlag
from tasks.support.workspace import slug

EVALUATION = Path("metrics/evaluate.json")
DECISION = Path("metrics/promote.json")
PROMPTS = Path("data/validated/evaluation.jsonl")


@dataclass(frozen=True)
class Choice:
    """A person's choice of a champion, which the rules do not overrule.

    Attributes:
        policy: the policy to promote.
        why: the reason that is kept with it.
    """

    policy: str
    why: str


@dataclass(frozen=True)
class Question:
    """What a decision follows from.

    Attributes:
        config: the rules.
        evaluation: what metrics/evaluate.json holds.
        keys: policy -> stage key of its model.
        prompts: identity of what the scores were measured on, and by whom.
        choice: a person's choice, or None.
    """

    config: PromoteConfig
    evaluation: Mapping[str, Any]
    keys: Mapping[str, str]
    prompts: str
    choice: Choice | None

    @property
    def figures(self) -> Mapping[str, Any]:
        figures: Mapping[str, Any] = self.evaluation["policies"]
        return figures

    def answer(self, present: Standing | None) -> Decision:
        """The decision, given the registry's present champion."""
        decision = decide(self.evaluation, self.config, present, keys=self.keys, prompts=self.prompts)
        if self.choice is None:
            return decision
        why = f"{self.choice.policy} was promoted by hand: {self.choice.why}"
        return dataclasses.replace(
            decision, champion=self.choice.policy, challenger=None, reasons=(*decision.reasons, why)
        )


def read_question(choice: Choice | None = None) -> Question:
    """Reads rules, figures and stage keys.

    Raises:
        DataError: there is no evaluation.
        ConfigError: the chosen policy was not evaluated.
    """
    evaluation = read_json(EVALUATION)
    policies = evaluation.get("policies") or {}
    candidates = sorted(set(policies) - set(REFERENCES))
    if choice is not None and choice.policy not in candidates:
        raise ConfigError(f"{choice.policy} is no evaluated policy", f"evaluated: {', '.join(candidates)}")
    records = {name: Path("runs") / f"{slug(name)}.json" for name in candidates}
    keys = {name: str(read_json(path)["key"]) for name, path in records.items() if path.exists()}
    return Question(
        read_section("promote", PromoteConfig), evaluation, keys, prompts_identity(evaluation), choice
    )


def prompts_identity(evaluation: Mapping[str, Any]) -> str:
    """Two evaluations with equal identities gave scores that can be compared: same prompts, judge, sampling,
    and where the score is a win rate, the same SFT policy."""
    locked = locked_hashes()
    parts = [dvc_hash(PROMPTS, locked), dvc_hash(Path("models/judge"), locked), evaluation.get("judge")]
    parts.append(read_yaml("params.yaml").get("evaluate", {}).get("sampling"))
    if any(figures.get("gold") is None for figures in (evaluation.get("policies") or {}).values()):
        parts.append(dvc_hash(Path("models/sft"), locked))
    return sha256_text(json.dumps(parts, sort_keys=True))[:16]


def promote(question: Question, *, dry_run: bool = False) -> dict[str, Any]:
    """Decides and, unless `dry_run`, moves the aliases `champion` and `challenger` and writes
    metrics/promote.json.

    A registry that is away does not fail a run: the decision is written with `applied` false, and promoting
    again applies it.

    Returns:
        What metrics/promote.json holds.

    Raises:
        WorkspaceError: a policy to promote has no version in the registry.
    """
    try:
        record = _through_registry(question, dry_run)
    except StoreAway as away:
        record = _record(question, question.answer(None), {}, None, applied=False) | {"because": away.message}
    if not dry_run:
        write_json(DECISION, record)
    return record


def _through_registry(question: Question, dry_run: bool) -> dict[str, Any]:
    """Delivers what waits, so that the versions are there; then decides and applies."""
    deliver_once(wait_seconds=60.0)
    with reached(read_config()) as store:
        from tasks.support.registry import Registry

        registry = Registry(store, question.config.model)
        present = registry.standing()
        decision = question.answer(present)
        versions = registry.versions(question.keys)
        for policy in filter(None, (decision.champion, decision.challenger)):
            if policy not in versions:
                raise WorkspaceError(
                    f"{policy} has no version of {question.config.model} in the registry",
                    f"see .prefloop/spool/refused.log; `prefloop run {policy} --force` registers it anew",
                )
        if not dry_run:
            registry.apply(decision, versions, question.figures, question.prompts)
    return _record(question, decision, versions, present, applied=not dry_run)


def _record(
    question: Question,
    decision: Decision,
    versions: Mapping[str, str],
    present: Standing | None,
    *,
    applied: bool,
) -> dict[str, Any]:
    record: dict[str, Any] = without_nan(
        {
            **decision.as_json(),
            "model": question.config.model,
            "versions": dict(versions),
            "present_champion": None if present is None else dataclasses.asdict(present),
            "applied": applied,
            "by_hand": None if question.choice is None else question.choice.why,
        }
    )
    return record


def as_text(record: Mapping[str, Any]) -> str:
    """The decision for people."""
    lines = []
    for policy, verdict in record["policies"].items():
        version = record["versions"].get(policy)
        name = f"{policy} (version {version})" if version else policy
        lines.append(f"{name}: {'passes' if verdict['passed'] else 'fails'}")
        marks = {True: "ok  ", False: "FAIL", None: "-   "}
        lines += [
            f"  {marks[check['passed']]} {check['rule']}: {check['reason']}" for check in verdict["checks"]
        ]
    lines += ["", *record["reasons"], ""]
    lines.append(
        f"champion: {record['champion'] or 'as it is'}; challenger: {record['challenger'] or 'none'}"
    )
    if "because" in record:
        lines.append(f"not applied: {record['because']}; `prefloop promote` applies it later")
    elif not record["applied"]:
        lines.append("a dry run: nothing was changed")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.promote", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="say what would happen")
    parser.add_argument("--policy", default="", help="promote this policy, whatever the rules say")
    parser.add_argument("--why", default="", help="the reason for --policy, kept with the model")
    parser.add_argument("--json", action="store_true", help="print metrics/promote.json")
    options = parser.parse_args(arguments)
    with ended_well("promote", StopFlag()):
        if bool(options.policy) != bool(options.why):
            raise ConfigError("--policy and --why go together", "say which policy, and why")
        choice = Choice(options.policy, options.why) if options.policy else None
        record = promote(read_question(choice), dry_run=options.dry_run)
        print(json.dumps(record, indent=2) if options.json else as_text(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
