"""The stage key changes with everything a result follows from, and with nothing else."""

from __future__ import annotations

import pytest

from tasks.support.keys import StageInputs, dvc_hash, locked_hashes, read_inputs, stage_key

PIPELINE = """
stages:
  sft:
    cmd: python -m tasks.sft
    deps: [models/base, data/rows.jsonl, code.py]
    params: [seed, sft, {runs/environment.json: }]
  evaluate:
    foreach: ${evaluate.policies}
    do:
      cmd: python -m tasks.evaluate ${item}
      deps: ["models/${item}"]
      params: [evaluate.sampling, {runs/environment.json: [threads]}]
"""


@pytest.fixture
def root(tmp_path):
    for path, text in {
        "dvc.yaml": PIPELINE,
        "params.yaml": "seed: 0\nsft: {lr: 1}\nppo: {lr: 1}\nevaluate: {policies: [ppo], sampling: {t: 1}}\n",
        "runs/environment.json": '{"threads": 2, "torch": "2"}',
        "models/base/weights": "w",
        "data/rows.jsonl": "{}",
        "code.py": "x = 1",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_inputs_of_a_foreach_stage(root):
    assert read_inputs("evaluate@ppo", root) == StageInputs(
        ("models/ppo",), (("params.yaml", "evaluate.sampling"), ("runs/environment.json", "threads"))
    )


@pytest.mark.parametrize(
    ("path", "text", "changes"),
    [
        ("params.yaml", "seed: 1\nsft: {lr: 1}", True),
        ("params.yaml", "seed: 0\nsft: {lr: 2}", True),
        ("params.yaml", "seed: 0\nsft: {lr: 1}\nppo: {lr: 9}", False),
        ("runs/environment.json", '{"threads": 1, "torch": "2"}', True),
        ("models/base/weights", "v", True),
        ("models/base/more", "", True),
        ("data/rows.jsonl", "{} ", True),
        ("code.py", "x = 2", True),
        ("other.py", "x", False),
        ("models/base/__pycache__/x.pyc", "x", False),
    ],
)
def test_what_changes_a_key(root, path, text, changes):
    before = stage_key("sft", {}, root)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)
    assert (stage_key("sft", {}, root) != before) is changes


def test_stages_have_keys_of_their_own(root):
    (root / "models/ppo").mkdir()
    assert stage_key("sft", {}, root) != stage_key("evaluate@ppo", {}, root)


def test_a_stage_that_no_pipeline_declares_takes_its_fallback(root):
    assert stage_key("none", {"a": 1}, root) != stage_key("none", {"a": 2}, root)


def test_the_hash_of_a_data_set_is_dvcs_own(root):
    (root / "dvc.lock").write_text("stages: {ingest: {outs: [{path: data/rows.jsonl, md5: abc}]}}")
    assert dvc_hash(root / "x", locked_hashes(root)) == ""
    from pathlib import Path

    assert dvc_hash(Path("data/rows.jsonl"), locked_hashes(root)) == "abc"
