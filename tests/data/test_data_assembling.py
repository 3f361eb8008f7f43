"""From sources to one file a kind: nothing vanishes, nothing moves."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.config.ingest import IngestConfig, WorldConfig
from prefloop.data.assembling import assemble
from prefloop.data.records import KINDS, split_of
from prefloop.data.sources import Source, from_world
from prefloop.errors import DataError

FILES = IngestConfig(source="files", judge_share=0.3, evaluation=1000)


def source(name: str, **kinds: list[dict[str, Any]]) -> Source:
    return Source(name, {kind: (lambda rows=rows: iter(rows)) for kind, rows in kinds.items()})


def pairs(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "prompt": f"question {i}", "chosen": f"a{i}", "rejected": "b"}
        for i in range(start, stop)
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {kind: (folder / f"{kind}.jsonl").read_bytes() for kind in KINDS}


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{kind}.jsonl").read_text().splitlines()]


def labels(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"id": f"l{i}", "prompt": f"question {i}", "completion": "a", "label": i % 2 == 0}
        for i in range(start, stop)
    ]


def prompts(folder: Path, kind: str) -> set[str]:
    return {row["prompt"] for row in rows(folder, kind)}


def test_comparisons_alone_give_every_kind_and_no_prompt_two_uses(tmp_path: Path) -> None:
    counts = assemble([source("001", preferences=pairs(0, 500))], FILES, tmp_path)
    uses = {
        f"question {i}": split_of([{"role": "user", "content": f"question {i}"}], fit=0.7, rl=0.2, judge=0.3)
        for i in range(500)
    }
    by_use = {
        use: {prompt for prompt, u in uses.items() if u == use}
        for use in ("fit", "judge", "rl", "evaluation")
    }
    assert prompts(tmp_path, "preferences") == by_use["fit"]
    assert prompts(tmp_path, "judge") == by_use["judge"]
    assert prompts(tmp_path, "prompts") == by_use["rl"]
    assert prompts(tmp_path, "evaluation") == by_use["evaluation"]
    assert prompts(tmp_path, "demonstrations") == by_use["fit"] | by_use["judge"]
    fates = counts["sources"]["001"]["preferences"]
    assert fates == {
        "in": 500,
        "used": len(by_use["fit"]),
        "judge": len(by_use["judge"]),
        "held_out_rl": len(by_use["rl"]),
        "held_out_evaluation": len(by_use["evaluation"]),
    }


def test_pretraining_text_holds_no_prompt_that_is_held_out(tmp_path: Path) -> None:
    assemble([source("001", preferences=pairs(0, 300))], FILES, tmp_path)
    text = (tmp_path / "text.jsonl").read_text()
    for prompt in prompts(tmp_path, "prompts") | prompts(tmp_path, "evaluation"):
        assert f"<|user|>{prompt}<|end|>" not in text
    assert all(f"<|user|>{prompt}<|end|>" in text for prompt in prompts(tmp_path, "preferences"))


def test_a_later_import_moves_nothing_that_was_derived(tmp_path: Path) -> None:
    first = source("001", preferences=pairs(0, 300))
    assemble([first], FILES, tmp_path / "before")
    assemble([first, source("002", preferences=pairs(200, 600))], FILES, tmp_path / "after")
    before, after = contents(tmp_path / "before"), contents(tmp_path / "after")
    for kind in ("demonstrations", "prompts", "evaluation", "text"):
        assert after[kind] == before[kind]
    assert after["preferences"].startswith(before["preferences"])
    assert len(after["preferences"]) > len(before["preferences"])


def test_a_later_import_of_explicit_kinds_adds_what_it_holds(tmp_path: Path) -> None:
    first = source("001", preferences=pairs(0, 300))
    assemble([first], FILES, tmp_path / "before")
    added = source("002", prompts=[{"prompt": "wholly new"}], evaluation=[{"prompt": "also new"}])
    assemble([first, added], FILES, tmp_path / "after")
    before, after = contents(tmp_path / "before"), contents(tmp_path / "after")
    assert rows(tmp_path / "after", "prompts")[-1] == {"prompt": "wholly new"}
    assert after["prompts"].startswith(before["prompts"])
    assert after["evaluation"].startswith(before["evaluation"])
    assert after["preferences"] == before["preferences"]


def test_derive_all_takes_every_import(tmp_path: Path) -> None:
    both = [source("001", preferences=pairs(0, 100)), source("002", preferences=pairs(100, 200))]
    config = IngestConfig(source="files", derive="all")
    assemble(both, config, tmp_path / "two")
    assemble([source("001", preferences=pairs(0, 200))], config, tmp_path / "one")
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_the_evaluation_set_is_limited_by_a_hash_and_repeats_count_once(tmp_path: Path) -> None:
    config = IngestConfig(source="files", evaluation=5)
    twice = [row for row in pairs(0, 300) for _ in range(2)]
    assemble([source("001", preferences=twice)], config, tmp_path / "a")
    assemble([source("001", preferences=twice[::-1])], config, tmp_path / "b")
    assert len(rows(tmp_path / "a", "evaluation")) == 5
    assert prompts(tmp_path / "a", "evaluation") == prompts(tmp_path / "b", "evaluation")


def test_max_rows_is_kept_and_said(tmp_path: Path) -> None:
    config = IngestConfig(source="files", max_rows=20)
    counts = assemble([source("001", preferences=pairs(0, 300))], config, tmp_path)
    assert all(len(rows(tmp_path, kind)) <= 20 for kind in KINDS)
    used = counts["sources"]["001"]["preferences"]["used"]
    assert counts["rows"]["preferences"] + counts["left_out"]["preferences"] == used


def test_explicit_sets_that_overlap_are_refused_with_the_reason(tmp_path: Path) -> None:
    overlapping = source(
        "001",
        preferences=pairs(0, 4),
        prompts=[{"prompt": "Question  1"}, {"prompt": "question 2"}],
        evaluation=[{"prompt": "question 2"}, {"prompt": "question 3"}],
    )
    counts = assemble([overlapping], IngestConfig(source="files"), tmp_path)
    refused = {
        row["raw"]["prompt"]: row["invalid"] for row in rows(tmp_path, "preferences") if "invalid" in row
    }
    assert refused == {
        "question 1": "prompt also in prompts",
        "question 2": "prompt also in evaluation",
        "question 3": "prompt also in evaluation",
    }
    assert rows(tmp_path, "prompts")[1]["invalid"] == "prompt also in evaluation"
    assert counts["sources"]["001"]["preferences"] == {"in": 4, "used": 1, "invalid": 3}


def test_what_came_first_keeps_a_prompt(tmp_path: Path) -> None:
    """An evaluation set imported later may not take prompts that were fitted on."""
    fitted = source("001", preferences=pairs(0, 50), prompts=[{"prompt": "rl"}], evaluation=[{"prompt": "e"}])
    later = source("002", evaluation=[{"prompt": "question 7"}, {"prompt": "rl"}, {"prompt": "new"}])
    assemble([fitted, later], IngestConfig(source="files"), tmp_path)
    evaluation = rows(tmp_path, "evaluation")
    assert [row.get("invalid") for row in evaluation] == [
        None,
        "prompt also in fitting",
        "prompt also in prompts",
        None,
    ]
    assert len(prompts(tmp_path, "preferences")) == 50


def test_unreadable_rows_are_counted_and_stay_with_their_kind(tmp_path: Path) -> None:
    broken = {"invalid": "no JSON", "raw": "{", "source": "a.jsonl", "line": 3}
    unpaired = [{"completion": "a", "label": True}, broken]
    counts = assemble(
        [source("001", preferences=[*pairs(0, 1), broken, {"chosen": "x"}], unpaired=unpaired)],
        FILES,
        tmp_path,
    )
    assert counts["sources"]["001"]["unpaired"] == {"in": 2, "invalid": 2}
    assert counts["sources"]["001"]["preferences"]["invalid"] == 2
    assert broken in rows(tmp_path, "preferences")
    assert rows(tmp_path, "unpaired") == unpaired


def test_labels_are_split_like_comparisons_and_give_no_other_kind(tmp_path: Path) -> None:
    both = source("001", preferences=pairs(0, 400), unpaired=labels(200, 600))
    counts = assemble([both], FILES, tmp_path / "both")
    assemble([source("001", preferences=pairs(0, 400))], FILES, tmp_path / "pairs")
    places = {
        i: split_of([{"role": "user", "content": f"question {i}"}], fit=0.7, rl=0.2, judge=0.3)
        for i in range(200, 600)
    }
    fitted = [row for row in labels(200, 600) if places[int(row["id"][1:])] == "fit"]
    assert rows(tmp_path / "both", "unpaired") == fitted
    fates = counts["sources"]["001"]["unpaired"]
    assert fates == {
        "in": 400,
        "used": len(fitted),
        **{f"held_out_{use}": list(places.values()).count(use) for use in ("judge", "rl", "evaluation")},
    }
    before, after = contents(tmp_path / "pairs"), contents(tmp_path / "both")
    assert {kind for kind in KINDS if before[kind] != after[kind]} == {"unpaired", "held_out"}
    assert prompts(tmp_path / "both", "unpaired").isdisjoint(prompts(tmp_path / "both", "judge"))


def test_labels_that_came_first_decide_nothing_for_comparisons(tmp_path: Path) -> None:
    compared = source("002", preferences=pairs(0, 200))
    assemble([compared], FILES, tmp_path / "alone")
    assemble([source("001", unpaired=labels(100, 300)), compared], FILES, tmp_path / "second")
    before, after = contents(tmp_path / "alone"), contents(tmp_path / "second")
    assert {kind for kind in KINDS if before[kind] != after[kind]} == {"unpaired", "held_out"}


def test_a_label_whose_prompt_was_named_for_evaluation_is_refused(tmp_path: Path) -> None:
    named = source("001", evaluation=[{"prompt": "question 3"}], preferences=pairs(10, 20))
    counts = assemble([named, source("002", unpaired=labels(0, 6))], FILES, tmp_path)
    assert counts["sources"]["002"]["unpaired"]["invalid"] == 1
    refused = [row for row in rows(tmp_path, "unpaired") if "invalid" in row]
    assert [row["invalid"] for row in refused] == ["prompt also in evaluation"]


def test_without_sources_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prefloop data import"):
        assemble([], FILES, tmp_path)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 40),
            st.sampled_from(["preferences", "demonstrations", "unpaired", "prompts", "evaluation"]),
        ),
        max_size=60,
    ),
    st.integers(0, 60),
)
def test_every_row_has_one_fate_and_uses_stay_apart(drawn: list[tuple[int, str]], cut: int) -> None:
    made: list[Source] = [source("000", preferences=pairs(0, 5))]
    for name, part in (("001", drawn[:cut]), ("002", drawn[cut:])):
        kinds: dict[str, list[dict[str, Any]]] = {}
        for number, kind in part:
            row = {"prompt": f"question {number}", "completion": "a", "chosen": "a", "rejected": "b"}
            kinds.setdefault(kind, []).append({**row, "label": True} if kind == "unpaired" else row)
        made.append(source(name, **kinds))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        counts = assemble(made, FILES, path)
        for kinds_of in counts["sources"].values():
            for fates in kinds_of.values():
                assert fates["in"] == sum(n for fate, n in fates.items() if fate != "in")
        seen = {
            kind: {r["prompt"] for r in rows(path, kind) if "invalid" not in r}
            for kind in KINDS
            if kind != "text"
        }
        fitted = seen["demonstrations"] | seen["preferences"] | seen["judge"] | seen["unpaired"]
        labelled = {row["prompt"] for row in rows(path, "held_out") if "label" in row}
        assert fitted.isdisjoint(row["prompt"] for row in rows(path, "held_out") if "label" not in row)
        # Labels of the judge's prompts are held out; what is derived from its comparisons is not.
        assert not (seen["preferences"] | seen["unpaired"]) & labelled
        assert not fitted & seen["prompts"]
        assert not fitted & seen["evaluation"]
        assert not seen["prompts"] & seen["evaluation"]
        assert not (seen["preferences"] | seen["unpaired"]) & seen["judge"]


def test_world_rows_stand_first_and_imported_comparisons_join_them(tmp_path: Path) -> None:
    small = WorldConfig(documents=20, demonstrations=30, preferences=20, prompts=20, evaluation=20, harmful=5)
    world = from_world(small, seed=0)
    alone = assemble([world], IngestConfig(world=small), tmp_path / "alone")
    assert alone["rows"] == {
        "text": 20, "demonstrations": 30, "preferences": 20, "judge": 0, "unpaired": 0, "prompts": 20,
        "evaluation": 25, "held_out": 0,
    }  # fmt: skip
    taken = next(iter(world.rows("evaluation")))["prompt"]
    mine = source("001", preferences=[*pairs(0, 30), {"prompt": taken, "chosen": "a", "rejected": "b"}])
    joined = assemble([world, mine], IngestConfig(world=small), tmp_path / "joined")
    assert joined["sources"]["001"]["preferences"] == {"in": 31, "used": 30, "invalid": 1}
    before, after = contents(tmp_path / "alone"), contents(tmp_path / "joined")
    assert {kind for kind in KINDS if before[kind] != after[kind]} == {"preferences"}
    assert rows(tmp_path / "joined", "preferences")[-1]["invalid"] == "prompt also in evaluation"


def test_rows_that_are_not_fitted_on_are_kept_apart(tmp_path: Path) -> None:
    """They are validated too, so that quarantine names every dirty row."""
    counts = assemble([source("001", preferences=pairs(0, 300))], FILES, tmp_path)
    kept = prompts(tmp_path, "held_out")
    assert kept == prompts(tmp_path, "prompts") | prompts(tmp_path, "evaluation")
    assert counts["rows"]["held_out"] + counts["rows"]["preferences"] + counts["rows"]["judge"] == 300
