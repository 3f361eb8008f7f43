"""prefloop compare: what differed, which is better, and how sure that is."""

from __future__ import annotations

import json

import pytest

from flows.cli.compare import command, tables
from flows.comparison import compare
from prefloop.errors import ConfigError
from tasks.support.records import find


def record(run, gold, *, lr="0.1", data="abc", evaluation="E", width=0.05, policy="ppo", start="1"):
    return {
        "run": run,
        "start": start,
        "git_commit": "c0ffee",
        "git_dirty": False,
        "params": {"sft.learning_rate": lr, "seed": "0"},
        "data": {"data/raw/preferences.jsonl": data, "data/validated/evaluation.jsonl": evaluation},
        "environment": {"threads": 2},
        "figures": {"sft": {"gold.mean": 1.0}, policy: {"gold.mean": gold, "kl_to_sft": 2.0}},
        "intervals": {policy: {"gold": [gold - width, gold + width]}},
    }


def test_what_differs_is_listed_and_what_is_equal_is_not():
    found = compare([record("a", 1.5), record("b", 1.5, lr="0.2", data="abd")])
    assert [(d.group, d.name, d.values) for d in found.differences] == [
        ("params", "sft.learning_rate", ("0.1", "0.2")),
        ("data", "data/raw/preferences.jsonl", ("abc", "abd")),
    ]


def test_a_method_that_one_run_does_not_use_is_one_difference():
    other = record("b", 1.5, lr="0.2")
    kto = {"kto.beta": "0.1", "kto.batch": "8", "policies.kto.kto.beta": "0.2", "fresh": "1"}
    other["params"] = {**other["params"], **kto}
    found = compare([record("a", 1.5), other])
    assert [(d.name, d.values) for d in found.differences] == [
        ("fresh", (None, "1")),
        ("kto", (None, "in use")),
        ("policies.kto.kto.beta", (None, "0.2")),
        ("sft.learning_rate", ("0.1", "0.2")),
    ]


@pytest.mark.parametrize(("width", "sure"), [(0.05, "intervals apart"), (0.3, "intervals overlap")])
def test_the_better_run_is_named_with_its_certainty(width, sure):
    found = compare([record("a", 1.5, width=width), record("b", 1.9, width=width)])
    assert found.verdict[0].startswith(
        "b is better than a: ppo with gold.mean 1.900 against ppo with 1.500 (+0.400"
    )
    assert sure in found.verdict[0]
    changes = {(row.policy, row.figure): row.change for row in found.figures}
    assert changes["ppo", "gold.mean"] == pytest.approx(0.4)
    assert changes["sft", "gold.mean"] == 0


def test_a_policy_that_one_run_lacks():
    found = compare([record("a", 1.5), record("b", 1.9, policy="dpo")])
    (row,) = [row for row in found.figures if (row.policy, row.figure) == ("dpo", "gold.mean")]
    assert (row.values, row.change) == ((None, 1.9), None)
    assert "dpo with gold.mean 1.900 against ppo" in found.verdict[0]


def test_three_runs_other_prompts_and_runs_without_evaluation():
    found = compare([record("a", 1.5), record("b", 1.9), record("c", 1.2)])
    assert len(found.verdict) == 2
    found = compare([record("a", 1.5), record("b", 1.9, evaluation="F")])
    assert found.verdict[0].startswith("the evaluation prompts differ")
    found = compare([record("a", 1.5), {"run": "b"}])
    assert found.verdict == ("fewer than two of these runs were evaluated: nothing to choose between",)
    different = record("b", 1.9)
    different["figures"] = {"ppo": {"win_rate_vs_sft.mean": 0.7}}
    assert "different judges" in compare([record("a", 1.5), different]).verdict[0]


def test_runs_are_found_by_place_id_and_beginning():
    records = [record("run-1", 1.0), record("run-2a", 1.0), record("run-2b", 1.0)]
    assert find("latest", records)["run"] == "run-2b"
    assert find("previous", records)["run"] == "run-2a"
    assert find("run-1", records)["run"] == "run-1"
    with pytest.raises(ConfigError, match="beginning of 2 runs"):
        find("run-2", records)
    with pytest.raises(ConfigError, match="no previous run"):
        find("previous", records[:1])


def test_the_command_prints_plain_columns_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    folder = tmp_path / ".prefloop/pipelines"
    folder.mkdir(parents=True)
    for number, made in enumerate([record("run-1", 1.5), record("run-2", 1.9, lr="0.2")]):
        (folder / f"{made['run']}.json").write_text(json.dumps(made | {"start": str(number)}))
    (folder / "broken.json").write_text("{")
    command(["previous", "latest"], as_json=False)
    plain = capsys.readouterr().out
    assert "params\tsft.learning_rate\t0.1\t0.2" in plain
    assert "run-2 is better than run-1" in plain
    command(["run-1", "run-2"], as_json=True)
    assert json.loads(capsys.readouterr().out)["runs"] == ["run-1", "run-2"]
    with pytest.raises(ConfigError, match="two runs or more"):
        command(["latest"])


def test_runs_that_do_not_differ_say_so():
    (_, _, rows), _ = tables(compare([record("a", 1.5), record("b", 1.5)]))
    assert rows == [["", "nothing", "", ""]]
