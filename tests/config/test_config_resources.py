"""What stages need: units, names of stages and pools, and what an entry means for which stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.config.params import METHODS, parse_params
from prefloop.config.read import read_yaml
from prefloop.config.resources import STAGES, StageResources, bytes_of
from prefloop.errors import ConfigError

POLICIES = {
    "policies": {"ppo": {"ppo": {}, "loose": {}}},
    "evaluate": {"policies": ["base", "sft", "ppo", "loose"]},
}


def parsed(resources: Any) -> Any:
    return parse_params({"ppo": {"steps": 1}, **POLICIES, "resources": resources}).resources


@pytest.mark.parametrize(
    ("memory", "number"),
    [
        ("", 0),
        ("1KiB", 1024),
        ("16GiB", 17_179_869_184),
        ("16 GB", 16_000_000_000),
        ("1.5MiB", 1_572_864),
        ("2TiB", 2_199_023_255_552),
        ("3kB", 3_000),
    ],
)
def test_memory_is_a_number_with_a_unit(memory: str, number: int) -> None:
    assert bytes_of(memory) == number


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ("16", "a unit is missing, such as in 16GiB"),
        ("16gib", "did you mean 16GiB?"),
        ("16Gi", "did you mean 16GiB?"),
        ("16 parsec", "units are KiB, MiB, GiB, TiB, kB, MB, GB, TB"),
        ("much", "which is no number with a unit"),
        ("-1GiB", "which is no number with a unit"),
    ],
)
def test_another_memory_is_refused_with_the_nearest(memory: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed({"stages": {"sft": {"memory": memory}}})
    assert caught.value.message.startswith("resources.stages.sft: memory is ")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("resources", "message", "remedy"),
    [
        ({"place": "pool"}, "resources.place is 'pool'", "did you mean pools?"),
        ({"retry": 2}, "unknown key resources.retry", "did you mean resources.retries?"),
        ({"retries": -1}, "retries must be at least 0", ""),
        ({"lost_seconds": 0}, "lost_seconds must be more than 0", ""),
        ({"stages": {"stf": {"gpu": 1}}}, "resources.stages.stf: there is no such stage", "stages.sft?"),
        ({"stages": {"ppo@lose": {}}}, "resources.stages.ppo@lose: there is no such", "stages.ppo@loose?"),
        ({"stages": {"validate@txt": {}}}, "validate@txt: there is no such stage", "stages.validate@text?"),
        ({"stages": {"sft": {"gpus": 1}}}, "unknown key resources.stages.sft.gpus", "stages.sft.gpu?"),
        ({"stages": {"sft": {"gpu": -1}}}, "resources.stages.sft: gpu must be at least 0", ""),
        ({"stages": {"sft": {"pool": "a b"}}}, "name a work pool in letters", ""),
        ({"pools": {"gpu": {"gpu": 4}}}, "unknown key resources.pools.gpu.gpu", "pools.gpu.gpus?"),
        ({"pools": {"../gpu": {}}}, "name a work pool in letters", ""),
    ],
)
def test_what_is_wrong_is_refused_with_the_nearest(resources: Any, message: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(resources)
    assert message in caught.value.message
    assert remedy in caught.value.remedy


def test_a_policy_takes_its_methods_entry_unless_it_is_named() -> None:
    resources = parsed(
        {"stages": {"ppo": {"gpu": 2, "pool": "gpu"}, "ppo@loose": {"gpu": 1}, "grpo": {"gpu": 8}}}
    )
    assert resources.of("ppo@ppo") == StageResources(gpu=2, pool="gpu")
    assert resources.of("ppo@loose") == StageResources(gpu=1), (
        "an entry stands for itself: no key is inherited"
    )
    assert resources.of("ingest") == StageResources()


def test_every_stage_of_the_pipeline_can_be_named(repository: Path) -> None:
    stages = read_yaml(repository / "dvc.yaml")["stages"].keys()
    assert stages - {"environment"} == {*STAGES, *METHODS}


def test_every_stage_with_models_says_what_it_needs(repository: Path) -> None:
    """One setting, `place: pools`, has to send all of them away."""
    stages = read_yaml(repository / "dvc.yaml")["stages"]
    bodies = {name: stage.get("do", stage) for name, stage in stages.items()}
    with_models = {
        name for name, body in bodies.items() if "models/" in str([body.get("deps"), body.get("outs")])
    }
    named = read_yaml(repository / "params.yaml")["resources"]["stages"]
    assert set(named) == with_models


def test_no_stage_depends_on_the_section(repository: Path) -> None:
    """A change of places must re-run nothing."""
    stages = read_yaml(repository / "dvc.yaml")["stages"]
    assert "resources" not in str([stage.get("do", stage).get("params") for stage in stages.values()])
