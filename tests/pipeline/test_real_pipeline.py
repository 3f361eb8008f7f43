"""The DAG of dvc.yaml itself, at a tiny size: run, re-run, and what each kind of change re-runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.pipeline.conftest import TINY, Workspace

pytestmark = pytest.mark.slow

CONTRACT = {
    "gold", "reward", "win_rate_vs_sft", "kl_to_sft", "length", "ended", "distinct_2", "by_kind",
}  # fmt: skip


def test_a_run_ends_with_figures_a_report_and_a_decision(workspace: Workspace) -> None:
    figures = workspace.read("metrics/evaluate.json")
    assert set(figures["policies"]) == {"base", "sft", "ppo", "dpo"}
    for policy in figures["policies"].values():
        assert set(policy) >= CONTRACT
        low, high = policy["gold"]["ci95"]
        assert low <= policy["gold"]["mean"] <= high
    assert figures["judge"] == "gold"
    assert figures["oracle"]["exact"]["mean"] >= figures["oracle"]["reachable"]["mean"]
    assert "promote" in workspace.first_output
    assert "reports/report.html" in workspace.first_output
    assert "</html>" in (workspace.root / "reports/report.html").read_text()


def test_rows_in_are_rows_validated_and_rows_quarantined(workspace: Workspace) -> None:
    for kind, count in workspace.read("metrics/ingest.json")["rows"].items():
        kept = (workspace.root / f"data/validated/{kind}.jsonl").read_text().count("\n")
        put_away = (workspace.root / f"data/quarantine/{kind}.jsonl").read_text().count("\n")
        assert kept + put_away == count, kind


def test_nothing_changed_then_nothing_runs(workspace: Workspace) -> None:
    assert workspace.actions("skip") == set(workspace.plan())
    assert "nothing changed" in workspace.run()


def test_the_kl_coefficient_touches_ppo_and_its_evaluation_and_comes_back_from_the_cache(
    workspace: Workspace,
) -> None:
    before = workspace.weights()
    parameters = (workspace.root / "params.yaml").read_text()
    output = workspace.run("--set", "ppo.kl_coef=0.3")
    ran = {line.split()[0] for line in output.splitlines() if " ran in " in line}
    assert ran == {"ppo@ppo", "evaluate@ppo", "looks", "report"}
    after = workspace.weights()
    assert {name for name in before if before[name] != after[name]} == {"models/ppo/model.safetensors"}
    (workspace.root / "params.yaml").write_text(parameters)
    assert workspace.actions("restore") == {"ppo@ppo", "evaluate@ppo", "looks", "report"}
    output = workspace.run()
    assert " ran in " not in output
    assert workspace.weights() == before
    assert not (workspace.root / ".prefloop/spool/refused.log").exists(), "MLflow took all that it was told"


def test_an_edit_touches_the_stages_that_import_it_and_no_other(workspace: Workspace) -> None:
    file = workspace.root / "prefloop/objectives/dpo.py"
    text = file.read_text()
    file.write_text(text + "\n# an edit\n")
    try:
        assert workspace.actions("run") == {"dpo@dpo"}
        assert workspace.actions("maybe") == {"evaluate@dpo", "looks", "report"}
        assert workspace.plan()["dpo@dpo"]["reasons"][0]["text"] == "prefloop/objectives/dpo.py changed"
    finally:
        file.write_text(text)


def test_added_comparisons_leave_sft_and_the_evaluation_prompts(workspace: Workspace, tmp_path: Path) -> None:
    before = workspace.weights()
    prompts = (workspace.root / "data/validated/evaluation.jsonl").read_bytes()
    rows = [
        {"prompt": f"Which of {n} boxes is the heavy one?", "chosen": f"Number {n}.", "rejected": "No idea."}
        for n in range(2, 30)
    ]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace.prefloop("data", "import", "trl", str(tmp_path / "more.jsonl"))
    plan = workspace.plan()
    assert plan["ingest"]["action"] == "run"
    assert plan["ingest"]["reasons"][0]["text"] == "data/sources changed"
    assert {name for name, stage in plan.items() if stage["action"] == "stays"} >= {"base", "sft"}
    assert workspace.actions("maybe") >= {"reward", "ppo@ppo", "dpo@dpo"}
    output = workspace.run()
    ran = {line.split()[0] for line in output.splitlines() if " ran in " in line}
    assert ran >= {"ingest", "validate@preferences", "reward", "ppo@ppo", "dpo@dpo"}
    assert not ran & {"base", "sft", "validate@demonstrations", "validate@text", "validate@evaluation"}
    after = workspace.weights()
    assert {name.split("/")[1] for name in before if before[name] != after[name]} == {"reward", "ppo", "dpo"}
    assert (workspace.root / "data/validated/evaluation.jsonl").read_bytes() == prompts


def test_a_variant_of_a_method_runs_alone_and_is_compared(workspace: Workspace) -> None:
    before = workspace.weights()
    parameters = (workspace.root / "params.yaml").read_text()
    output = workspace.run("--set", "policies.ppo.ppo-loose={method: ppo, kl_coef: 0.02}")
    ran = {line.split()[0] for line in output.splitlines() if " ran in " in line}
    assert ran == {"ppo@ppo-loose", "evaluate@ppo-loose", "looks", "report"}
    assert {name: data for name, data in workspace.weights().items() if name in before} == before
    assert set(workspace.read("metrics/evaluate.json")["policies"]) == {
        "base", "sft", "ppo", "dpo", "ppo-loose",
    }  # fmt: skip
    assert workspace.read("runs/ppo-loose.json")["stage"] == "ppo@ppo-loose"
    (workspace.root / "params.yaml").write_text(parameters)
    assert "ppo@ppo-loose" not in workspace.plan()


def rows_of(workspace: Workspace, name: str) -> list[dict]:
    return [json.loads(line) for line in (workspace.root / name).read_text().splitlines()]


def test_the_rows_that_models_were_fitted_on_are_as_many_as_their_stages_counted(
    workspace: Workspace,
) -> None:
    rows = [json.loads(line) for line in workspace.prefloop("trace", "ppo", "--rows").splitlines()]
    taken = {(row["stage"], row["use"]): 0 for row in rows}
    for row in rows:
        taken[row["stage"], row["use"]] += 1
    sft, reward = workspace.read("metrics/sft.json"), workspace.read("metrics/reward.json")
    ppo = workspace.read("metrics/policies/ppo.json")
    # Eight steps of 32 pass over all of them; four steps of 16 take 64 at most.
    assert taken["sft", "fitted"] == sft["demonstrations"]
    assert taken["reward", "fitted"] == min(reward["prompts"], TINY["reward.steps"] * 16)
    assert taken["reward", "set the scale"] == TINY["reward.normalise_prompts"]
    assert taken["ppo@ppo", "sampled"] == min(ppo["prompts"], TINY["ppo.steps"] * TINY["ppo.batch_size"])
    assert taken["ppo@ppo", "chose the weights"] == ppo["held_out"] == TINY["ppo.select_prompts"]
    first = rows[0]
    assert rows_of(workspace, first["file"])[first["line"] - 1]["id"] == first["id"]


def test_a_trace_names_parents_by_the_keys_of_their_records(workspace: Workspace) -> None:
    found = json.loads(workspace.prefloop("trace", "models/dpo", "--json"))
    assert found["key"] == workspace.read("runs/dpo.json")["key"]
    above = {one["stage"]: one["key"] for one in found["ancestors"]}
    assert {"sft", "base", "ingest", "validate@preferences"} <= set(above)
    assert above["sft"] == workspace.read("runs/sft.json")["key"]
    assert found["evaluations"][0]["stage"] == "evaluate@dpo"
    figures = workspace.read("metrics/evaluate/dpo.json")
    assert found["evaluations"][0]["figures"]["gold"] == {
        name: figures["gold"][name] for name in ("mean", "ci95")
    }


def test_who_has_seen_a_demonstration_and_an_evaluation_prompt(workspace: Workspace) -> None:
    rows = [json.loads(line) for line in workspace.prefloop("trace", "sft", "--rows").splitlines()]
    demonstration = next(row["id"] for row in rows if row["kind"] == "demonstrations")
    prompt = rows_of(workspace, "data/validated/evaluation.jsonl")[0]["id"]
    answer = json.loads(workspace.prefloop("trace", "--row", demonstration, "--row", prompt, "--json"))
    seen, unseen = ({one["path"]: one for one in row["models"] if one["current"]} for row in answer["rows"])
    variant = {"models/ppo-loose"}  # there after the test of a variant
    assert {path for path, one in seen.items() if one["seen"]} - variant == {
        "models/sft", "models/reward", "models/ppo", "models/dpo",
    }  # fmt: skip
    assert any(name.startswith("prefloop-policy/") for name in seen["models/ppo"]["registered"])
    assert not any(one["seen"] for one in unseen.values())


def test_a_rebuilt_model_is_byte_identical(workspace: Workspace, tmp_path: Path) -> None:
    before = workspace.weights()
    found = json.loads(workspace.prefloop("rebuild", "sft", str(tmp_path / "again"), "--json"))
    assert found["identical"] is True, found
    assert found["fingerprints_equal"] is True
    assert not (tmp_path / "again/models/dpo").exists()
    weights = (tmp_path / "again/models/sft/model.safetensors").read_bytes()
    assert weights == before["models/sft/model.safetensors"]
    assert workspace.weights() == before
