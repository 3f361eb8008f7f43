"""The step promote against a real registry: aliases, reasons, a better champion, a registry that is away."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("mlflow")

from prefloop.config.tracking import TrackingConfig
from prefloop.errors import ConfigError, DataError, WorkspaceError
from tasks.promote import DECISION, Choice, promote, read_question
from tasks.support.mlflow_store import reached
from tasks.support.tracking import RunTracker


def figures(gold, low=0.6, kl=2.0):
    return {
        "gold": {"mean": gold, "ci95": [gold - 0.1, gold + 0.1]},
        "win_rate_vs_sft": {"mean": low + 0.04, "ci95": [low, low + 0.08]},
        "kl_to_sft": kl,
        "ended": 1.0,
        "refusal": None,
    }


def evaluate(**policies):
    for folder in ("metrics", "runs", "data/validated"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Path("data/validated/evaluation.jsonl").write_text("{}\n")
    everyone = {"base": figures(-1.0), "sft": figures(1.0), **policies}
    Path("metrics/evaluate.json").write_text(json.dumps({"judge": "gold", "policies": everyone}))


def train(policy, key):
    """What the stage of a policy leaves: its record, and its model on the way to the registry."""
    tracker = RunTracker(policy, f"{key}-{policy}", writer=os.getpid())
    tracker.start(params={}, tags={})
    model = Path("models") / policy
    model.mkdir(parents=True, exist_ok=True)
    (model / "weights").write_text(key)
    tracker.model(model, key, "prefloop-policy", {})
    tracker.end("FINISHED")
    Path("runs").mkdir(exist_ok=True)
    Path(f"runs/{policy}.json").write_text(json.dumps({"key": key}))


def aliases():
    with reached(TrackingConfig(experiment="test")) as store:
        return {
            alias: str(v) for alias, v in store.client.get_registered_model("prefloop-policy").aliases.items()
        }


def tags(version):
    with reached(TrackingConfig(experiment="test")) as store:
        return store.client.get_model_version("prefloop-policy", version).tags


def test_champion_and_challenger_with_reasons_and_twice_is_once(tracked):
    train("dpo", "key-d")
    train("ppo", "key-p")
    evaluate(ppo=figures(1.9), dpo=figures(1.7))
    assert promote(read_question(), dry_run=True)["applied"] is False
    assert not DECISION.exists()
    record = promote(read_question())
    assert (record["champion"], record["challenger"]) == ("ppo", "dpo")
    assert record["versions"] == {"dpo": "1", "ppo": "2"}
    assert json.loads(DECISION.read_text()) == record
    assert aliases() == {"champion": "2", "challenger": "1"}
    found = tags("1")
    assert found["prefloop.promotion"] == "challenger"
    assert "KL to SFT" in found["prefloop.reasons"]
    again = promote(read_question())
    assert (again["champion"], again["challenger"], aliases()) == (
        "ppo",
        "dpo",
        {"champion": "2", "challenger": "1"},
    )


def test_a_worse_successor_is_challenger_and_a_person_may_overrule(tracked):
    train("ppo", "key-1")
    evaluate(ppo=figures(1.9))
    promote(read_question())
    train("ppo", "key-2")
    evaluate(ppo=figures(1.5))
    record = promote(read_question())
    assert (record["champion"], record["challenger"]) == (None, "ppo")
    assert "scored higher" in record["reasons"][-1]
    assert aliases() == {"champion": "1", "challenger": "2"}
    by_hand = promote(read_question(Choice("ppo", "shorter answers")))
    assert by_hand["by_hand"] == "shorter answers"
    assert aliases() == {"champion": "2"}
    assert "by hand: shorter answers" in tags("2")["prefloop.decision"]


def test_a_registry_that_is_away_leaves_a_decision_to_apply_later(tracked, monkeypatch):
    train("ppo", "key-1")
    evaluate(ppo=figures(1.9))
    monkeypatch.setattr(
        "tasks.deliver.read_config", lambda: TrackingConfig(uri="http://127.0.0.1:9", experiment="x")
    )
    record = promote(read_question())
    assert (record["champion"], record["applied"]) == ("ppo", False)
    assert "cannot be used now" in record["because"]
    monkeypatch.undo()
    os.chdir(tracked)
    assert promote(read_question())["applied"] is True
    assert aliases() == {"champion": "1"}


def test_what_cannot_be_promoted_is_refused(tracked):
    with pytest.raises(DataError, match=r"evaluate\.json is missing"):
        read_question()
    evaluate(ppo=figures(1.9))
    with pytest.raises(ConfigError, match="pppo is no evaluated policy"):
        read_question(Choice("pppo", "a slip"))
    with pytest.raises(ConfigError, match="sft is no evaluated policy"):
        read_question(Choice("sft", "the reference"))
    with pytest.raises(WorkspaceError, match="ppo has no version"):
        promote(read_question())
