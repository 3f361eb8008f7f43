"""The stage reward from files to folder: an ensemble on tiny data, its figures and its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefloop.config.compute import ComputeConfig
from prefloop.files import read_json, write_json
from prefloop.models.reward_model import RewardModel
from prefloop.training.environment import resolve
from tasks import reward
from tests import tiny

SECTION = {
    "batch_size": 4,
    "max_length": 48,
    "learning_rate": 0.003,
    "holdout": 0.3,
    "normalise_prompts": 6,
    "bootstrap": 50,
    "length_control": "regress",
    "ensemble": {"members": 2, "aggregate": "worst"},
}


def workspace(folder: Path, section: dict[str, Any]) -> None:
    """Everything that the stage reads."""
    questions = [f"{question} {i}" for question in tiny.QUESTIONS for i in range(4)]
    rows = [
        {"prompt": question, "completions": tiny.ANSWERS[:3], "ranks": [0, 1, 1], "rater": f"r{i % 2}"}
        for i, question in enumerate(questions)
    ]
    rows.append({"prompt": "Ties?", "completions": ["Blue.", "Red."], "ranks": [0, 0]})
    data = folder / "data" / "validated"
    data.mkdir(parents=True)
    for name, content in (("preferences", rows), ("prompts", [{"prompt": q} for q in tiny.QUESTIONS])):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    tiny.saved(folder / "models" / "sft")
    # JSON is YAML.
    (folder / "params.yaml").write_text(json.dumps({"seed": 0, "compute": {}, "reward": section}))
    (folder / "runs").mkdir()
    environment = resolve(ComputeConfig(device="cpu", precision="fp32", threads=1))
    write_json(folder / "runs" / "environment.json", environment.to_dict())


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")

    def stage(name: str, **changes: Any) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path / name
        workspace(folder, {**SECTION, **changes})
        monkeypatch.chdir(folder)
        reward.main()
        return folder / "models" / "reward", read_json(folder / "metrics" / "reward.json")

    return stage


def test_an_ensemble_is_measured_described_and_the_same_each_time(run: Any) -> None:
    folder, figures = run("one")
    assert figures["unused"] == 1
    assert set(figures["members"]) == {"0", "1"}
    assert figures["disagreement"] > 0
    assert figures["length_slope"] != 0
    model = RewardModel.load(folder)
    assert model.members == 2
    assert model.normalisation.slope == figures["length_slope"]
    card = (folder / "README.md").read_text()
    assert "2 members with trunks of their own, aggregate worst" in card
    assert f"pairs ordered rightly: {figures['accuracy']['mean']:.3f}" in card
    assert "length control: regress" in card
    again, _ = run("other")
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert Path("member-1/model.safetensors") in files
    for file in files:
        assert (folder / file).read_bytes() == (again / file).read_bytes(), file


def test_a_single_model_has_no_figures_of_an_ensemble(run: Any) -> None:
    folder, figures = run("single", ensemble={}, length_control="none", holdout=0.0)
    assert figures["held_out_prompts"] == 0
    assert "members" not in figures
    assert set(read_json(folder / "reward_normalisation.json")) == {"mean", "std"}
    assert "0 prompts held out" in (folder / "README.md").read_text()
