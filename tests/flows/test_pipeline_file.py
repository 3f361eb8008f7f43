"""dvc.yaml: what makes `git checkout` of earlier parameters free, and plans exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dvc.dependency.param import ParamsDependency

from flows.planning.planner import is_preparation, open_repo, pipeline_stages
from prefloop.files import atomic_file, atomic_folder

ROOT = Path(__file__).parents[2]
STAGES = {stage.name: stage for stage in pipeline_stages(open_repo(ROOT))}
TRAINING = ("base", "sft", "reward", "judge", "ppo@ppo", "dpo@dpo")


def paths(items) -> set[str]:
    return {str(item.def_path) for item in items}


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if not is_preparation(stage)])
def test_a_stages_results_can_be_restored(name: str) -> None:
    """DVC saves no run in its run-cache when a stage has an output that is persisted or not cached."""
    stage = STAGES[name]
    assert not stage.always_changed
    assert [out.def_path for out in stage.outs if not out.use_cache or out.persist] == []


def test_there_is_one_preparation_and_it_resolves_the_environment() -> None:
    assert [name for name, stage in STAGES.items() if is_preparation(stage)] == ["environment"]


@pytest.mark.parametrize("folder", ["metrics/evaluate", "metrics/policies", "reports/looks", "plots"])
def test_what_a_kill_left_half_written_is_no_input(folder: str, tmp_path: Path) -> None:
    """Whole folders are inputs: a draft in one would change its hash, and re-run what follows for ever."""
    ignore = open_repo(ROOT).dvcignore
    with atomic_file(tmp_path / "sft.json") as handle:
        draft = ROOT / folder / Path(handle.name).name
    assert ignore.is_ignored_file(str(draft))
    assert not ignore.is_ignored_file(str(ROOT / folder / "sft.json"))
    with atomic_folder(tmp_path / "sft") as made:
        draft = ROOT / folder / made.name
    assert ignore.is_ignored_dir(str(draft))
    assert ignore.is_ignored_dir(str(draft.with_suffix(".old")))


@pytest.mark.parametrize("name", TRAINING)
def test_what_trains_depends_on_environment_seed_and_its_section(name: str) -> None:
    params = {dep.def_path: dep.params for dep in STAGES[name].deps if isinstance(dep, ParamsDependency)}
    assert params["runs/environment.json"] == [], "the whole file"
    assert {"seed", name.split("@")[0]} <= set(params["params.yaml"])
    # Pre-training sees text alone; whatever learns from prompts waits for the proof that no use shares them.
    assert ("metrics/validate-leaks.json" in paths(STAGES[name].deps)) == (name != "base")


@pytest.mark.parametrize("name", list(STAGES))
def test_no_stage_depends_on_the_record_of_a_run(name: str) -> None:
    read = {path for path in paths(STAGES[name].deps) if path.startswith("runs/")}
    assert read <= {"runs/environment.json", "runs/code.json"}


def test_comparisons_feed_reward_and_dpo_alone() -> None:
    readers = {
        name for name, stage in STAGES.items() if "data/validated/preferences.jsonl" in paths(stage.deps)
    }
    assert readers == {"validate-leaks", "reward", "dpo@dpo"}


def test_each_policy_is_evaluated_by_itself() -> None:
    policies = yaml.safe_load((ROOT / "params.yaml").read_text())["evaluate"]["policies"]
    for policy in policies:
        read = {path for path in paths(STAGES[f"evaluate@{policy}"].deps) if path.startswith("models/")}
        assert read == {f"models/{policy}", "models/sft", "models/reward", "models/judge"}
