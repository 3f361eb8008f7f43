"""prefloop trace and rebuild, on a workspace made by hand, in which every answer is known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows.provenance.clone import refuse_unless_empty
from flows.provenance.find import find_making
from flows.provenance.rebuilding import _damaged, rebuild
from flows.provenance.rows import fitted_rows
from flows.provenance.seen import as_json, read_ids, who_saw
from flows.provenance.showing import rebuilt_lines, seen_lines, trace_lines
from flows.provenance.tracing import trace
from prefloop.data.records import content_id
from prefloop.errors import ConfigError, DataError, ModelError, WorkspaceError
from tasks.support import registered
from tasks.support.lineage import Lineage
from tasks.support.registered import Registered
from tests.flows.made_by_hand import (
    DEMONSTRATIONS,
    ENVIRONMENT,
    HELD,
    NO_ID,
    OLD,
    REPOSITORY,
    TEXT,
    Hand,
    held_apart,
)
from tests.flows.made_by_hand import hand as hand


def ids(found: list[dict[str, Any]], stage: str, use: str) -> set[str]:
    return {row["id"] for row in found if row["stage"] == stage and row["use"] == use}


def seen_by(hand: Hand, id_: str) -> dict[str, bool | None]:
    """Model, "(old)" behind those of before -> whether it saw the row."""
    (row,) = who_saw(hand.lineage(), [id_])
    return {one.making.model + ("" if one.making.current else " (old)"): one.seen for one in row.sightings}


def test_a_trace_has_the_whole_chain_with_keys_hashes_and_counts(hand: Hand) -> None:
    lineage = hand.lineage()
    found = trace(lineage, find_making(lineage, "ppo"))
    assert found["model"] == {"path": "models/ppo", "hash": hand.content["models/ppo"], "current": True}
    assert (found["stage"], found["key"], found["run"]) == ("ppo@ppo", "key-ppo@ppo-1", "run-ppo@ppo-1")
    assert found["git_commit"] == hand.git("rev-parse", "HEAD")
    assert found["git_dirty"] is True
    assert {row["path"]: row["rows"] for row in found["data"]} == {
        "data/validated/prompts.jsonl": 8,
        "data/validated/demonstrations.jsonl": 11,
    }
    above = {one["stage"]: one for one in found["ancestors"]}
    assert set(above) == {
        "sft", "reward", "base", "ingest",
        "validate@demonstrations", "validate@prompts", "validate@preferences", "validate@text",
    }  # fmt: skip
    assert set(above["reward"]["parents"]) == {"sft", "validate@preferences", "validate@prompts"}
    assert above["sft"]["key"] == "key-sft-1"
    assert above["ingest"]["imports"] == ["001-native"]
    assert found["forgotten"] == []
    (evaluation,) = found["evaluations"]
    assert evaluation["figures"] == {
        "gold": {"mean": 1.5, "ci95": [1.0, 2.0]},
        "kl_to_sft": {"mean": 0.25},
    }


def test_parameters_are_held_against_those_of_the_commit(hand: Hand) -> None:
    lineage = hand.lineage()
    assert trace(lineage, find_making(lineage, "sft"))["changed_parameters"] == {}
    lock = hand.root / "dvc.lock"
    lock.write_text(lock.read_text().replace("holdout: 0.3", "holdout: 3e-01"))  # as DVC writes small numbers
    assert trace(hand.lineage(), find_making(hand.lineage(), "sft"))["changed_parameters"] == {}
    changed = trace(lineage, find_making(lineage, "ppo@ppo"))["changed_parameters"]
    assert changed == {"ppo.steps": 1, "ppo.batch_size": 4, "ppo.minibatches": 1, "ppo.select_prompts": 2}


def test_layout_is_no_part_of_the_fingerprint_and_versions_are(hand: Hand) -> None:
    lineage = hand.lineage()
    before = trace(lineage, find_making(lineage, "sft"))["environment_fingerprint"]
    environment = hand.stages["sft"]["params"]["runs/environment.json"] = {**ENVIRONMENT, "processes": 8}
    hand.write_lock()
    lineage = hand.lineage()
    assert trace(lineage, find_making(lineage, "sft"))["environment_fingerprint"] == before
    environment["torch"] = "2.14.0"
    hand.write_lock()
    lineage = hand.lineage()
    assert trace(lineage, find_making(lineage, "sft"))["environment_fingerprint"] != before


def test_rows_are_those_of_the_model_and_its_ancestors(hand: Hand) -> None:
    lineage = hand.lineage()
    found = list(fitted_rows(lineage, find_making(lineage, "ppo")))
    fitted = {row["id"] for row in DEMONSTRATIONS[:10]} - set(HELD)
    assert 0 < len(HELD) < 10
    no_id = set() if held_apart(NO_ID, 0.3, "sft") else {content_id(NO_ID)}
    assert ids(found, "sft", "fitted") == fitted | no_id
    assert ids(found, "reward", "fitted") == {"p-0", "p-1", "p-2", "p-3", "p-5"}
    assert len(ids(found, "reward", "set the scale")) == 3
    assert len(ids(found, "ppo@ppo", "sampled")) == 4
    assert len(ids(found, "ppo@ppo", "chose the weights")) == 2
    assert ids(found, "base", "fitted") == {"t-0"}
    assert {row["file"] for row in found} == {
        f"data/validated/{kind}.jsonl" for kind in ("text", "demonstrations", "preferences", "prompts")
    }
    kinds = {row["id"]: row["id_is"] for row in found}
    assert kinds["t-0"] == "its own"
    assert no_id == set() or kinds[content_id(NO_ID)] == "a hash of its content"
    first = next(row for row in found if row["id"] == sorted(fitted)[0] and row["stage"] == "sft")
    assert first["line"] == 1 + [row.get("id") for row in DEMONSTRATIONS].index(first["id"])


def test_a_demonstration_is_seen_by_sft_and_all_that_comes_of_it(hand: Hand) -> None:
    row = next(row["id"] for row in DEMONSTRATIONS[:10] if row["id"] not in HELD)
    found = seen_by(hand, row)
    assert found.pop("models/base") is False
    assert len(found) == 6
    assert set(found.values()) == {True}


def test_evaluation_quarantined_and_held_out_rows_are_seen_by_nobody(hand: Hand) -> None:
    for id_ in ("e-0", "d-dirty", HELD[0], "p-4"):
        assert set(seen_by(hand, id_).values()) == {False}, id_
    (row,) = who_saw(hand.lineage(), ["d-dirty"])
    assert set(row.places) == {"data/raw/demonstrations.jsonl", "data/quarantine/demonstrations.jsonl"}
    (row,) = who_saw(hand.lineage(), [HELD[0]])
    assert {one.why for one in row.sightings if one.making.stage == "sft"} == {"held out"}


def test_a_row_of_before_is_seen_by_the_models_of_before(hand: Hand) -> None:
    assert not held_apart(OLD, 0.3, "sft")
    found = seen_by(hand, "d-old")
    assert {model for model, seen in found.items() if seen} == {
        "models/sft (old)", "models/reward (old)", "models/ppo (old)",
    }  # fmt: skip
    seen = seen_by(hand, content_id(NO_ID))  # the id of a row without one
    assert seen["models/base"] is False
    assert seen["models/ppo"] is not held_apart(NO_ID, 0.3, "sft")


def test_a_row_that_others_were_made_from_is_followed_through_them(hand: Hand) -> None:
    """An imported comparison gives a transcript to pre-train on, whose id is a hash of its content."""
    turns = "<|user|>Which is box 0?<|end|><|assistant|>Number 0.<|end|>"
    made = {"text": turns}
    hand.file("data/validated/text.jsonl", [*TEXT, {"id": content_id(made), **made}])
    for name in ("validate@text", "base"):
        entry = hand.stages[name]
        for item in [*entry["outs"], *entry["deps"]]:
            if item["path"] == "data/validated/text.jsonl":
                item["md5"] = hand.content["data/validated/text.jsonl"]
    hand.write_lock()
    (row,) = who_saw(hand.lineage(), ["p-0"])
    assert content_id(made) in row.ids
    assert {one.making.model: one.seen for one in row.sightings if one.making.current}["models/base"] is True


def test_an_unknown_id_is_an_error_and_ids_come_from_files(hand: Hand, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file has a row with the id nobody") as raised:
        who_saw(hand.lineage(), ["d-0", "nobody"])
    assert raised.value.exit_code == 3
    file = tmp_path / "ids.txt"
    file.write_text('d-1\n\n{"id": "d-2", "prompt": "x"}\n' + json.dumps(NO_ID) + "\nd-1\n")
    assert read_ids(["d-0"], file) == ["d-0", "d-1", "d-2", content_id(NO_ID)]
    with pytest.raises(ConfigError, match="no row was named"):
        read_ids([], None)
    with pytest.raises(DataError, match="missing"):
        read_ids([], tmp_path / "none")


def test_what_can_no_longer_be_read_is_not_called_unseen(hand: Hand) -> None:
    lost = next(
        dep["md5"] for dep in hand.stages["sft"]["deps"] if dep["path"].endswith("demonstrations.jsonl")
    )
    hand.cached(lost).unlink()
    (hand.root / "data/validated/demonstrations.jsonl").unlink()
    (row,) = who_saw(hand.lineage(), ["t-0"])
    seen = {one.making.model: one.seen for one in row.sightings if one.making.current}
    assert seen["models/base"] is True
    (row,) = who_saw(hand.lineage(), ["e-0"])
    seen = {one.making.model: one.seen for one in row.sightings if one.making.current}
    assert seen == {"models/base": False, "models/sft": None, "models/reward": None, "models/ppo": None}
    lineage = hand.lineage()
    with pytest.raises(DataError, match="cannot be told"):
        list(fitted_rows(lineage, find_making(lineage, "ppo")))


def test_a_changed_byte_in_the_cache_is_found_out(hand: Hand) -> None:
    digest = hand.content["data/validated/preferences.jsonl"]
    data = hand.cached(digest).read_bytes()
    hand.cached(digest).write_bytes(data.replace(b"Number 3", b"Number 4"))
    lineage = hand.lineage()
    list(fitted_rows(lineage, find_making(lineage, "reward")))  # the workspace's own file is whole
    assert list(lineage.objects.damaged) == [
        hand.root.resolve() / hand.cached(digest).relative_to(hand.root)
    ] or (list(lineage.objects.damaged) == [hand.cached(digest)])
    (hand.root / "data/validated/preferences.jsonl").unlink()
    lineage = hand.lineage()
    with pytest.raises(DataError, match="was changed: its bytes"):
        list(fitted_rows(lineage, find_making(lineage, "reward")))


def test_a_changed_weight_is_named(hand: Hand) -> None:
    lineage = hand.lineage()
    making = find_making(lineage, "sft")
    files = lineage.objects.files(making.outs["models/sft"], "models/sft")
    assert _damaged(lineage, making, files) == []
    hand.cached(files["model.safetensors"]).write_text("sft of noW")
    assert _damaged(lineage, making, files) == [str(hand.cached(files["model.safetensors"]))]


@pytest.mark.parametrize(
    "name", ["ppo", "ppo@ppo", "models/ppo", "models/ppo/", "prefloop-policy@champion", "prefloop-policy/3"]
)
def test_the_names_of_a_model(hand: Hand, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_registry(name: str, version: str = "", alias: str = "") -> Registered | None:
        found = Registered("prefloop-policy", "3", "key-ppo@ppo-1", "ppo@ppo", ("champion",))
        return (
            found if (name, version, alias) in {(found.name, "3", ""), (found.name, "", "champion")} else None
        )

    monkeypatch.setattr(registered, "find_version", of_registry)
    assert find_making(hand.lineage(), name).stage == "ppo@ppo"


def test_an_earlier_version_is_found_in_the_run_cache(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    version = Registered("prefloop-policy", "1", "key-ppo@ppo-0", "ppo@ppo", ())
    monkeypatch.setattr(registered, "find_version", lambda name, **_: version)
    lineage = hand.lineage()
    making = find_making(lineage, "prefloop-policy/1")
    assert making.stage == "ppo@ppo"
    found = trace(lineage, making)
    assert found["model"]["current"] is False
    assert {one["stage"]: one["key"] for one in found["ancestors"]}["sft"] == "key-sft-0"
    assert found["evaluations"] == []  # that of now is of other weights


def test_models_that_are_not_there(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no model pppo") as raised:
        find_making(hand.lineage(), "pppo")
    assert "ppo" in raised.value.remedy
    with pytest.raises(ModelError, match="registry has no model prefloop-policy/9"):
        find_making(hand.lineage(), "prefloop-policy/9")  # there is no registry, and asking makes none
    assert not (hand.root / ".prefloop").exists()
    gone = Registered("prefloop-policy", "2", "key-unknown", "ppo@ppo", ())
    monkeypatch.setattr(registered, "find_version", lambda name, **_: gone)
    with pytest.raises(ModelError, match="was not made here, or what made it is forgotten"):
        find_making(hand.lineage(), "prefloop-policy/2")


def test_answers_in_words_and_in_json(hand: Hand) -> None:
    lineage = hand.lineage()
    text = "\n".join(trace_lines(trace(lineage, find_making(lineage, "ppo"))))
    assert "models/ppo  " + hand.content["models/ppo"] in text
    assert "gold: 1.5 [1, 2]" in text
    assert "reward <- sft, validate@preferences, validate@prompts" in text
    row = next(row["id"] for row in DEMONSTRATIONS[:10] if row["id"] not in HELD)
    found = who_saw(lineage, [row])
    keys = {id(making): str(lineage.record(making)["key"]) for making in lineage.models()}
    versions = [
        Registered("prefloop-policy", "3", "key-ppo@ppo-1", "ppo@ppo", ("champion",)),
        Registered("prefloop-policy", "2", "key-elsewhere", "ppo@ppo", ()),
    ]
    value = json.loads(json.dumps(as_json(found, keys, versions)))
    ppo = next(one for one in value["rows"][0]["models"] if one["path"] == "models/ppo" and one["current"])
    assert ppo["seen"] is True
    assert "models/sft" in ppo["through"]
    assert ppo["registered"] == ["prefloop-policy/3 @champion"]
    assert value["registered_and_forgotten"] == ["prefloop-policy/2"]
    lines = list(seen_lines({**value, "registry": "asked"}))
    assert "    models/base (key key-base-1): it is in nothing that the stage read" in lines


def test_a_rebuild_is_refused_where_code_was_never_committed(hand: Hand, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("again") / "clone"
    record = json.loads((hand.root / "runs/sft.json").read_text())
    record["code"] = {"files": {"tasks/sft.py": "0" * 64}}
    hand.file("runs/sft.json", record)
    for out in hand.stages["sft"]["outs"]:
        out["md5"] = hand.content[out["path"]]
    hand.write_lock()
    lineage = hand.lineage()
    before = {file: file.stat().st_mtime_ns for file in hand.root.rglob("*") if file.is_file()}
    with pytest.raises(WorkspaceError, match=r"is not what made it: .*tasks/sft.py") as raised:
        rebuild(lineage, find_making(lineage, "sft"), folder, dirty=False, say=lambda text: None)
    assert "--dirty" in raised.value.remedy
    assert not folder.exists()
    assert {file: file.stat().st_mtime_ns for file in hand.root.rglob("*") if file.is_file()} == before


def test_a_rebuild_takes_no_folder_in_use_and_none_in_the_workspace(
    hand: Hand, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("used")
    (folder / "mine").write_text("x")
    with pytest.raises(WorkspaceError, match="is not empty"):
        refuse_unless_empty(folder, hand.root)
    with pytest.raises(WorkspaceError, match="lies in the workspace"):
        refuse_unless_empty(hand.root / "again", hand.root)


@pytest.mark.slow
def test_a_rebuilt_model_is_byte_identical_and_the_workspace_untouched(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing, with git and dvc, on stages that only hash."""
    monkeypatch.chdir(finished.root)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)

    def state() -> dict[str, tuple[int, bytes]]:
        files = [
            file for file in finished.root.rglob("*") if file.is_file() and "__pycache__" not in file.parts
        ]
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}

    before = state()
    lineage = Lineage(finished.root)
    said: list[str] = []
    found = rebuild(lineage, find_making(lineage, "sft"), tmp_path / "again", dirty=False, say=said.append)
    assert found.identical, "\n".join(said)
    assert found.fingerprints_equal
    assert (found.stages, found.damaged, found.code) == (("sft", "ingest"), (), {})
    assert (tmp_path / "again/models/sft/weights").read_bytes() == (
        finished.root / "models/sft/weights"
    ).read_bytes()
    ran = (tmp_path / "again/.prefloop/ran.log").read_text().splitlines()
    assert ran == ["ingest 0", "sft 0"]  # and neither ppo, dpo nor an evaluation
    assert state() == before
    assert next(rebuilt_lines(found.as_json())).startswith("models/sft: byte-identical")
