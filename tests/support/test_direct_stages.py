"""The stages that learn from preferences directly, from files to a folder that loads."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from prefloop.data.holdout import split_holdout
from prefloop.files import read_json, read_jsonl
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("dpo", "kto", "orpo", "simpo")
SMALL: dict[str, Any] = {
    "steps": 2,
    "batch_size": 8,
    "max_length": 48,
    "learning_rate": 3e-3,
    "holdout": 0.3,
    "look_prompts": 4,
}


@pytest.fixture
def workspace(stage_folder: Path) -> Path:
    parameters(stage_folder)
    for name in ("base", "sft"):
        tiny.saved(stage_folder / "models" / name)
    rows = [
        {"prompt": f"What colour is the {thing}, number {n}?", "chosen": "It is blue.", "rejected": "Blue."}
        for n in range(4)
        for thing in ("kettle", "lamp", "mug", "bowl")
    ]
    folder = stage_folder / "data" / "validated"
    folder.mkdir(parents=True)
    prompts = [{"id": str(n), "prompt": f"Is the mug {n} blue?"} for n in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "unpaired.jsonl").write_text("")
    importlib.import_module("tasks.environment").main()
    return stage_folder


def parameters(folder: Path, **changes: dict[str, object]) -> None:
    """With what differs in one method's policy."""
    sections = {"compute": {"device": "cpu", "threads": 1, "precision": "fp32"}}
    policies = {name: {name: changes.get(name, {})} for name in STAGES}
    values = {"seed": 0, **sections, **dict.fromkeys(STAGES, SMALL), "policies": policies}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


def documented(stage: str) -> str:
    return "".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in (stage, "training"))


def test_each_stage_writes_a_model_and_only_documented_figures(workspace: Path) -> None:
    asked: list[list[str]] = []
    for stage in STAGES:
        importlib.import_module(f"tasks.{stage}").main()
        loaded = AutoModelForCausalLM.from_pretrained(workspace / "models" / stage)
        assert loaded.config.model_type == "llama"
        figures = read_json(workspace / "metrics" / "policies" / f"{stage}.json")
        held = figures.pop("held_out")
        assert held["chosen_logprob"] < 0 < held["loss"]
        header, *lines = (workspace / "plots" / f"{stage}.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 2
        page = documented(stage)
        for name in {*figures, *held, *header.split(",")} - {"step"}:
            assert f"`{name}`" in page, f"docs/{stage}.md does not define {name}"
        rows = list(read_jsonl(workspace / "reports" / "looks" / f"{stage}.jsonl"))
        assert [row["step"] for row in rows] == [1] * 4 + [2] * 4
        asked.append([row["id"] for row in rows])
    assert all(ids == asked[0] for ids in asked), "all are looked at alike"
    counts = read_json(workspace / "metrics" / "policies" / "kto.json")
    pairs = read_json(workspace / "metrics" / "policies" / "dpo.json")["pairs"]
    assert (counts["desirable"], counts["undesirable"]) == (pairs, pairs)
    assert "The base model, tuned by ORPO." in (workspace / "models/orpo/README.md").read_text()


def test_kto_takes_comparisons_labels_or_both(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("tasks.kto").main
    weights = workspace / "models" / "kto" / "model.safetensors"

    def trained(data: str) -> tuple[dict[str, Any], bytes, str]:
        parameters(workspace, kto={"data": data})
        main()
        said = capsys.readouterr()
        return read_json(workspace / "metrics/policies/kto.json"), weights.read_bytes(), said.out + said.err

    without, model, said = trained("auto")
    assert trained("comparisons")[1] == model, "without labels auto is comparisons"
    assert without["weight_ratio"] == 1
    assert "warning" not in said
    parameters(workspace, kto={"data": "labels"})
    with pytest.raises(SystemExit):
        main()
    assert "kto has no row to train on" in capsys.readouterr().err

    labels = [
        {"prompt": f"Is the lamp {n} red?", "completion": "It is.", "label": n % 4 == 0} for n in range(24)
    ]
    file = workspace / "data" / "validated" / "unpaired.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in labels))
    kept, _ = split_holdout(labels, SMALL["holdout"], "dpo")
    good = sum(row["label"] for row in kept)
    alone, _, said = trained("labels")
    assert (alone["desirable"], alone["undesirable"]) == (good, len(kept) - good)
    assert f"weigh {good / (len(kept) - good):.3g} times what undesirable ones do" in said
    both, mixed, _ = trained("auto")
    assert both["desirable"] == without["desirable"] + good
    assert both["undesirable"] == without["undesirable"] + len(kept) - good
    assert mixed != model
    assert trained("comparisons")[1] == model, "labels that are not asked for change nothing"


def test_variants_of_dpo_share_the_reference(workspace: Path) -> None:
    main = importlib.import_module("tasks.dpo").main
    main()
    kept = {file: file.stat().st_mtime_ns for file in (workspace / ".prefloop" / "reference").iterdir()}
    assert len(kept) == 2  # fitted and held out
    parameters(workspace, dpo={"loss": "ipo", "beta": 0.5})
    main()
    again = {file: file.stat().st_mtime_ns for file in (workspace / ".prefloop" / "reference").iterdir()}
    assert again == kept


def test_looks_change_neither_the_model_nor_its_card(workspace: Path) -> None:
    main = importlib.import_module("tasks.dpo").main

    def model() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted((workspace / "models" / "dpo").iterdir())}

    main()
    watched = model()
    parameters(workspace, dpo={"looks": 0})
    (workspace / "data" / "validated" / "prompts.jsonl").unlink()
    main()
    assert model() == watched
    assert (workspace / "reports" / "looks" / "dpo.jsonl").read_bytes() == b""
