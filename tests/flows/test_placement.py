"""Where stages go, and with which environment a plan is made before anybody is asked."""

from __future__ import annotations

import json

import pytest

from flows.placement import decide, placed, remember, remembered, use_environment
from flows.planning.model import Place
from flows.planning.planner import make_plan, open_repo
from flows.planning.show import as_json, plan_lines
from flows.preparation import refresh
from prefloop.errors import ConfigError

CPU = {"device": "cpu", "threads": 2}
GPUS = {"device": "cuda", "threads": 2, "processes": 1}
EVERYTHING = "{sft: {gpu: 1, pool: big}, ppo: {gpu: 1, memory: 16GiB, pool: big}, report: {memory: 1GiB}}"


def resources(project, place="pools", stages=EVERYTHING):
    text = (project.root / "params.yaml").read_text().partition("resources:")[0]
    (project.root / "params.yaml").write_text(
        f"{text}resources:\n  place: {place}\n  retry_seconds: 0.2\n  stages: {stages}\n"
    )
    return decide(project.root, open_repo(project.root))


def environment(project):
    return json.loads((project.root / "runs/environment.json").read_text())


def test_a_stage_goes_to_the_pool_that_it_names(finished):
    placement = resources(finished)
    assert placement.pools == {"sft": "big", "ppo": "big"}
    assert placement.environment_pools == ["big"]
    assert placement.computes_here == []
    assert resources(finished, place="here").pools == {}


def test_one_pool_takes_every_stage_with_models(finished):
    resources(finished, place="here")
    placement = decide(finished.root, open_repo(finished.root), "other")
    assert set(placement.pools) == {"sft", "ppo", "dpo", "evaluate@sft", "evaluate@ppo", "evaluate@dpo"}
    assert set(placement.pools.values()) == {"other"}


def test_gpus_are_asked_for_where_stages_compute_on_gpus(finished):
    placement, root = resources(finished), finished.root
    memory = 17_179_869_184
    assert placement.place(root, "ppo") == Place("big", 0, memory), "the pool's workers have none"
    assert placement.place(root, "ppo", known=False) == Place("big", 1, memory)
    use = {"sft": {**GPUS, "processes": 4}}["sft"]
    (root / "runs/environment.json").write_text(json.dumps(use))
    assert placement.place(root, "ppo").gpus == 4, "each process of a training needs one"
    assert placement.place(root, "report") == Place("", 0, 2**30)
    here = resources(finished, place="here")
    assert here.place(root, "sft") == Place("", 4, 0)
    (root / "runs/environment.json").write_text(json.dumps(CPU))
    assert here.place(root, "sft") == Place(), "no GPU here: it runs on the processor"


def test_a_pool_that_was_heard_of_is_not_asked_again(finished):
    placement, root = resources(finished), finished.root
    asked = []

    def ask(pool):
        asked.append(pool)
        return GPUS

    assert not use_environment(root, placement, None), "nobody knows it yet"
    assert environment(finished)["device"] == "cpu"
    assert use_environment(root, placement, ask)
    assert use_environment(root, placement, ask)
    assert asked == ["big"]
    assert environment(finished) == GPUS
    finished.edit("params.yaml", "threads: 2 ", "threads: 4 ")
    assert remembered(root, "big") is None, "what it resolved for other parameters is no answer"


def test_plans_know_the_pool_and_show_it(finished):
    placement, root = resources(finished), finished.root
    remember(root, "big", GPUS)
    repo = open_repo(root)
    assert refresh(root, repo)
    assert environment(finished) == GPUS, "not what this machine computes with"
    plan = placed(make_plan(repo), placement, root)
    lines = {line.split()[0]: line for line in plan_lines(plan)}
    assert lines["sft"].endswith("[on pool big, 1 GPU]")
    assert lines["ppo"].endswith("[on pool big, 1 GPU, 16 GiB]")
    assert lines["report"].endswith("[1 GiB]")
    assert "[" not in lines["dpo"]
    values = {stage["stage"]: stage["place"] for stage in as_json(plan)}
    assert values["ppo"] == {"pool": "big", "gpus": 1, "memory_bytes": 17_179_869_184}
    assert values["dpo"] == {"pool": None, "gpus": 0, "memory_bytes": 0}


def test_stages_of_one_run_compute_in_one_environment(finished):
    root = finished.root
    mixed = resources(finished, stages="{sft: {pool: big}, ppo: {pool: small}}")
    remember(root, "big", CPU)
    remember(root, "small", CPU)
    assert use_environment(root, mixed, None)
    remember(root, "small", GPUS)
    with pytest.raises(ConfigError) as caught:
        use_environment(root, mixed, None)
    assert "device is cpu on pool big and cuda on pool small" in caught.value.message
    partly = resources(finished, stages="{sft: {pool: small}}")
    with pytest.raises(ConfigError) as caught:
        use_environment(root, partly, None)
    assert (
        "device is cuda on pool small and cpu on this machine (stages ppo run here)" in caught.value.message
    )
    assert "send them to one pool" in caught.value.remedy
    assert environment(finished)["device"] == "cpu"


def test_a_plan_alone_needs_no_server_and_no_worker(finished):
    """Everything is up to date on the pool: nobody is asked, so nobody has to be there."""
    resources(finished)
    remember(finished.root, "big", environment(finished))
    assert "nothing changed" in finished.prefloop("run", "ppo")
