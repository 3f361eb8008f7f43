"""Which rows a training takes: against splits computed here, and against what trainers really draw."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import prefloop.training.on_policy as on_policy
from prefloop.errors import ConfigError
from prefloop.training.checkpoints import Checkpoints
from tasks.fitted import answer
from tasks.support.fitted_rows import row_uses
from tasks.support.reads import models_read, section_of
from tests.tiny import StopAfter
from tests.training import trainings

DEMONSTRATIONS = [{"prompt": f"What is box {i}?", "completion": f"Number {i}."} for i in range(20)]
COMPARISONS = [
    {"prompt": f"What is box {i}?", "chosen": f"Number {i}.", "rejected": "No idea."} for i in range(20)
]
LABELS = [{"prompt": f"Is box {i} full?", "completion": "Yes.", "label": i % 2 == 0} for i in range(10)]
PROMPTS = [{"prompt": f"Where is box {i}?", "id": f"r-{i}"} for i in range(24)]
FILES = {
    "data/validated/demonstrations.jsonl": DEMONSTRATIONS,
    "data/validated/preferences.jsonl": COMPARISONS,
    "data/validated/unpaired.jsonl": LABELS,
    "data/validated/prompts.jsonl": PROMPTS,
    "data/validated/text.jsonl": [{"text": "A box."}, {"text": "Another."}],
}


def uses(group: str, section: dict[str, Any], part: str = "", **more: Any) -> dict[str, dict[str, set[int]]]:
    """File -> use -> positions; each row of a file has one use at most."""
    found: dict[str, dict[str, set[int]]] = {}
    rows = list(row_uses(group, part, {"seed": 0, group: section, **more}, FILES.__getitem__))
    assert len({(path, place) for path, place, _ in rows}) == len(rows)
    for path, place, use in rows:
        found.setdefault(Path(path).stem, {}).setdefault(use, set()).add(place)
    return found


def kept_apart(rows: list[dict[str, Any]], share: float, purpose: str) -> set[int]:
    """The split as docs describe it: a hash of purpose and normalised prompt, as a number below the share."""
    points = [
        int.from_bytes(hashlib.sha256(f"{purpose}\n{row['prompt'].lower()}".encode()).digest()[:8], "little")
        for row in rows
    ]
    return {place for place, point in enumerate(points) if point < share * 2**64}


def test_demonstrations_held_out_are_not_fitted_and_all_others_are() -> None:
    held = kept_apart(DEMONSTRATIONS, 0.3, "sft")
    assert 0 < len(held) < 20
    found = uses("sft", {"holdout": 0.3, "batch_size": 4})
    assert found == {"demonstrations": {"fitted": set(range(20)) - held, "held out": held}}


def test_a_training_of_few_steps_takes_as_many_rows_as_its_steps_hold() -> None:
    found = uses("sft", {"holdout": 0.0, "batch_size": 4, "steps": 2})["demonstrations"]
    assert {use: len(places) for use, places in found.items()} == {"fitted": 8, "in no step": 12}


def test_comparisons_that_order_nothing_are_not_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "skipped": True} if i == 3 else row for i, row in enumerate(COMPARISONS)]
    rows[5] = {"prompt": "Which?", "completions": ["A.", "B."], "ranks": [0, 0]}
    monkeypatch.setitem(FILES, "data/validated/preferences.jsonl", rows)
    found = uses("reward", {"holdout": 0.0, "normalise_prompts": 7})
    assert found["preferences"] == {"fitted": set(range(20)) - {3, 5}, "orders nothing": {3, 5}}
    assert len(found["prompts"]["set the scale"]) == 7
    for method in ("dpo", "orpo", "simpo"):
        of_policy = uses(method, {"holdout": 0.0}, method, policies={method: {method: {}}})
        assert of_policy == {"preferences": found["preferences"]}


def test_a_policy_has_its_own_knobs_and_holds_out_what_the_other_methods_do() -> None:
    held = kept_apart(COMPARISONS, 0.4, "dpo")
    policies = {"dpo": {"other": {"holdout": 0.4, "method": "dpo"}}}
    found = uses("dpo", {"holdout": 0.0}, "other", policies=policies)["preferences"]
    assert found["held out"] == held
    assert found["fitted"] == set(range(20)) - held
    assert section_of("dpo", "other", {"dpo": {"holdout": 0.0, "beta": 1}, "policies": policies}) == {
        "holdout": 0.4,
        "beta": 1,
    }


@pytest.mark.parametrize(
    ("data", "files"),
    [("comparisons", {"preferences"}), ("labels", {"unpaired"}), ("auto", {"preferences", "unpaired"})],
)
def test_kto_takes_the_files_that_its_data_names(data: str, files: set[str]) -> None:
    found = uses("kto", {"data": data, "holdout": 0.0, "batch_size": 8}, "kto")
    assert set(found) == files
    assert all(set(of_file) == {"fitted"} for of_file in found.values())


def test_every_document_is_in_the_tokenizer_and_a_given_model_has_seen_none() -> None:
    assert uses("base", {}) == {"text": {"fitted": {0, 1}}}
    assert uses("base", {"model": "some/model"}) == {}
    assert uses("judge", {"kind": "gold"}) == {}


def test_ppo_draws_what_is_told_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training: the prompts that its collector is asked for, the demonstrations beside its updates."""
    monkeypatch.setattr(trainings, "PROMPTS", PROMPTS)
    sizes = {"steps": 2, "batch_size": 6, "minibatches": 2, "ptx_coef": 0.1, "select_prompts": 5}
    trainer = trainings.ppo_trainer(tmp_path, **sizes)
    drawn: set[str] = set()
    shown: set[int] = set()
    draw = trainer.collector.draw
    places = {id(row): i for i, row in enumerate(trainer.demonstrations)}

    def recorded(rows: Any, step: int) -> Any:
        drawn.update(trainer.collector.prompts[i]["id"] for i in rows)
        return draw(rows, step)

    def beside(policy: Any, tokenizer: Any, rows: Any, *rest: Any) -> Any:
        shown.update(places[id(row)] for row in rows)
        return iter(())

    monkeypatch.setattr(trainer.collector, "draw", recorded)
    monkeypatch.setattr(on_policy, "demonstrate", beside)
    trainer.train(Checkpoints(tmp_path / "checkpoints", 1e9), StopAfter())
    monkeypatch.setitem(FILES, "data/validated/demonstrations.jsonl", trainings.DEMONSTRATIONS)
    told = uses("ppo", {**sizes, "select_kl": 100.0, "max_length": 48}, "ppo")
    assert {PROMPTS[i]["id"] for i in told["prompts"]["sampled"]} == drawn
    assert {PROMPTS[i]["id"] for i in told["prompts"]["chose the weights"]} == {
        row["id"] for row in trainer.held_out
    }
    assert Counter(map(len, told["prompts"].values())) == Counter([12, 5, 7])
    assert told["demonstrations"]["fitted"] == shown


@pytest.mark.parametrize("method", ["grpo", "rloo", "reinforce", "online_dpo"])
def test_groups_and_pairs_divide_the_batch_as_their_trainers_do(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings, "PROMPTS", PROMPTS)
    sizes = {"steps": 2, "batch_size": 8, "select_prompts": 4}
    if method == "online_dpo":
        trainer: Any = trainings.online_dpo_trainer(tmp_path, **sizes)
    else:
        sizes["group_size"] = 4
        trainer = trainings.group_trainer(method, tmp_path, **sizes)
    drawn = {trainer.prompts[i]["id"] for step in range(2) for i in trainer.order.step(step)}
    told = uses(method, {**sizes, "select_kl": 100.0}, method)["prompts"]
    assert {PROMPTS[i]["id"] for i in told["sampled"]} == drawn
    assert len(told["chose the weights"]) == 4


def test_rejection_keeps_the_prompts_apart_that_it_is_looked_at_with() -> None:
    found = uses("rejection", {"look_prompts": 6, "batch_size": 4, "steps": 2, "rounds": 1}, "rejection")[
        "prompts"
    ]
    assert {use: len(places) for use, places in found.items()} == {
        "fitted": 8,
        "in no step": 10,
        "held out": 6,
    }


def test_a_section_of_another_version_is_said_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no_such_knob"):
        uses("sft", {"no_such_knob": 1})
    question = {"stage": "sft", "parameters": {"seed": 0, "sft": {"no_such_knob": 1}}, "files": {}}
    assert "no_such_knob" in answer(question)["error"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in DEMONSTRATIONS))
    question = {
        "stage": "sft",
        "parameters": {"seed": 0, "sft": {"holdout": 0.0}},
        "files": {"data/validated/demonstrations.jsonl": str(file)},
    }
    expected = {"data/validated/demonstrations.jsonl": {"fitted": list(range(20))}}
    assert {
        path: {u: sorted(p) for u, p in of.items()} for path, of in answer(question)["uses"].items()
    } == expected


def test_which_models_a_stage_starts_from() -> None:
    deps = ["models/base", "models/sft", "data/validated/preferences.jsonl"]
    assert models_read("orpo", {"orpo": {"start": "base"}, "policies": {"orpo": {"orpo": {}}}}, deps) == (
        "models/base",
    )
    assert models_read(
        "orpo", {"orpo": {"start": "base"}, "policies": {"orpo": {"o": {"start": "sft"}}}}, deps
    ) == ("models/sft",)
    assert models_read("judge", {"judge": {"kind": "gold"}}, deps) == ()
    assert models_read("reward", {"reward": {"base": "some/encoder"}}, deps) == ("models/sft",)
    assert models_read("reward", {"reward": {"base": "base"}}, deps) == ("models/base", "models/sft")
    assert models_read("dpo", {"dpo": {}, "policies": {"dpo": {"dpo": {}}}}, deps[1:]) == ("models/sft",)
