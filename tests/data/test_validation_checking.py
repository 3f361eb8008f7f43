"""Validation of whole kinds: what passes, what is put away, what stops the run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.config.parse import parse
from prefloop.config.validate import ValidateConfig
from prefloop.data.validation.checking import APPLICABLE, KindReport, check_kind
from prefloop.errors import DataError

PAIR: dict[str, Any] = {"prompt": "Which one is it?", "chosen": "This one.", "rejected": "That one, I think."}


def config(**expectations: Any) -> ValidateConfig:
    return parse(ValidateConfig, {"expectations": expectations}, "validate")


def check(
    folder: Path,
    rows: list[dict[str, Any]],
    kind: str = "preferences",
    settings: ValidateConfig | None = None,
) -> KindReport:
    raw = folder / "raw.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_kind(
        kind, raw, folder / "validated.jsonl", folder / "quarantine.jsonl", settings or config(), folder
    )


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def dirty() -> list[dict[str, Any]]:
    return [
        {**PAIR, "source": "a.jsonl", "line": 1},
        {**PAIR, "rejected": "This one.", "source": "a.jsonl", "line": 2},
        {"invalid": "no JSON (Expecting value)", "raw": "{", "source": "a.jsonl", "line": 3},
        {**PAIR, "prompt": "which  one IS it?", "source": "a.jsonl", "line": 4},
        {**PAIR, "prompt": "What else?", "source": "a.jsonl", "line": 5},
        {**PAIR, "prompt": "And then?", "source": "a.jsonl", "line": 6},
    ]


def test_dirty_rows_are_put_away_with_their_reasons(tmp_path: Path) -> None:
    report = check(tmp_path, dirty())
    assert (report.rows_in, report.validated, report.quarantined) == (6, 3, 3)
    assert report.reasons == {"completions_differ": 1, "readable": 1, "no_duplicate": 1}
    assert [row["line"] for row in lines(tmp_path / "validated.jsonl")] == [1, 5, 6]
    aside = lines(tmp_path / "quarantine.jsonl")
    assert [(entry["line"], entry["reasons"][0]["expectation"]) for entry in aside] == [
        (2, "completions_differ"),
        (3, "readable"),
        (4, "no_duplicate"),
    ]
    assert aside[1]["reasons"][0]["detail"] == "no JSON (Expecting value)"
    assert aside[2]["reasons"][0]["detail"] == "says the same as row 1 (a.jsonl, line 1)"
    assert aside[2]["row"]["prompt"] == "which  one IS it?"


def test_an_error_names_rows_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check(tmp_path, dirty(), settings=config(completions_differ={"severity": "error"}))
    assert "1 of 6 rows break completions_differ: a.jsonl, line 2: chosen and rejected are equal" in str(
        caught.value
    )
    assert "validate.expectations" in caught.value.remedy
    assert not (tmp_path / "validated.jsonl").exists()
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_warnings_pass_and_what_is_off_is_not_looked_at(tmp_path: Path) -> None:
    relaxed = config(no_duplicate={"severity": "warn"}, completions_differ={"severity": False})
    report = check(tmp_path, dirty(), settings=relaxed)
    assert (report.validated, report.quarantined) == (5, 1)
    found = {finding.name: finding for finding in report.findings}
    assert not found["no_duplicate"].met
    assert found["no_duplicate"].rows == 1
    assert "completions_differ" not in found


def test_thresholds_are_those_of_the_configuration(tmp_path: Path) -> None:
    rows = [PAIR, {**PAIR, "prompt": "word " * 50}]
    assert check(tmp_path, rows).reasons == {}
    assert check(tmp_path, rows, settings=config(length={"threshold": 20})).reasons == {"length": 1}
    aside = lines(tmp_path / "quarantine.jsonl")
    assert aside[0]["reasons"] == [{"expectation": "length", "detail": "56 tokens"}]


def test_contradictions_put_both_rows_away(tmp_path: Path) -> None:
    turned = {**PAIR, "chosen": PAIR["rejected"], "rejected": PAIR["chosen"]}
    report = check(tmp_path, [PAIR, turned, {**PAIR, "prompt": "Other?"}, {**PAIR, "prompt": "Third?"}])
    assert report.reasons == {"consistent_preference": 2}
    assert lines(tmp_path / "quarantine.jsonl")[0]["reasons"][0]["detail"].startswith(
        "prefers the opposite of row 2"
    )


def test_near_duplicates_are_reported_and_templates_are_not(tmp_path: Path) -> None:
    long = "Please tell me in few words why the sky over the city looks red when the sun goes down at night"
    rows = [{"prompt": long}, {"prompt": long + ", please!"}, {"prompt": long.replace("red", "green")}]
    report = check(tmp_path, rows, "prompts")
    near = next(finding for finding in report.findings if finding.name == "no_near_duplicate")
    assert (near.rows, near.severity, near.examples[0]["row"]) == (1, "warn", 2)
    assert report.quarantined == 0


@pytest.mark.parametrize("rows", [[], [{**PAIR, "chosen": " "}], [{**PAIR, "skipped": True}]])
def test_no_usable_row_is_an_error(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(DataError, match="usable_rows is 0, threshold 1"):
        check(tmp_path, rows)


def test_mostly_bad_rows_look_like_a_wrong_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"quarantined_share is 0\.6667, threshold 0\.5 .*most often schema"):
        check(tmp_path, [PAIR, {"prompt": "a"}, {"prompt": "b"}])


def test_the_judge_may_have_no_rows(tmp_path: Path) -> None:
    assert check(tmp_path, [], "judge").rows_in == 0
    assert (tmp_path / "validated.jsonl").read_text() == ""


def test_a_pull_of_length_is_a_warning(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"a long answer {i}", "rejected": f"short {i}"}
        for i in range(10)
    ]
    report = check(tmp_path, rows)
    balance = next(finding for finding in report.findings if finding.name == "length_balance")
    assert (report.figures["longer_chosen"], balance.met, balance.figure) == (1.0, False, 0.5)


def test_every_expectation_applies_somewhere() -> None:
    from prefloop.config.validate import DEFAULTS

    applied = {name for names in APPLICABLE.values() for name in names}
    assert applied | {"no_leak", "no_near_leak"} == set(DEFAULTS)


CHANGES = st.sampled_from(
    [
        {},
        {"chosen": ""},
        {"prompt": 3},
        {"chosen": "x\x00"},
        {"rejected": "This one."},
        {"prompt": [{"role": "assistant", "content": "a"}]},
        {"invalid": "broken", "raw": None},
    ]
)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(CHANGES, st.integers(0, 5)), min_size=1, max_size=25))
def test_rows_in_are_rows_validated_and_rows_quarantined(drawn: list[tuple[dict[str, Any], int]]) -> None:
    lenient = config(usable_rows={"severity": "off"}, quarantined_share={"severity": "off"})
    rows = [
        {**PAIR, "prompt": f"Question {number}?", "id": str(i), **change}
        for i, (change, number) in enumerate(drawn)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = check(folder, rows, settings=lenient)
        passed, aside = lines(folder / "validated.jsonl"), lines(folder / "quarantine.jsonl")
    assert report.rows_in == len(rows) == len(passed) + len(aside)
    both = [row["id"] for row in passed] + [entry["row"]["id"] for entry in aside]
    assert sorted(both, key=int) == [str(i) for i in range(len(rows))]
    assert all(entry["reasons"] for entry in aside)


def test_labels_of_one_answer_are_kept_unless_one_rater_contradicts_himself(tmp_path: Path) -> None:
    said = {"prompt": "Which one?", "completion": "This one."}
    rows = [
        {**said, "label": True, "rater": "ann"},
        {**said, "label": False, "rater": "bob"},
        {**said, "label": True, "rater": "ann"},
        {**said, "label": "yes", "rater": "cat"},
        {"prompt": "Where?", "completion": " ", "label": False},
        {"prompt": "When?", "completion": "Now.", "label": True, "rater": "dan"},
        {"prompt": "when?", "completion": "now.", "label": False, "rater": "dan"},
        {"prompt": "When?", "completion": "Never.", "label": False, "rater": "dan"},
    ]
    report = check(tmp_path, rows, "unpaired", config(quarantined_share={"severity": "warn"}))
    assert lines(tmp_path / "validated.jsonl") == [rows[0], rows[1], rows[7]]
    assert report.reasons == {
        "no_duplicate": 1,
        "schema": 1,
        "completion_not_empty": 1,
        "consistent_preference": 2,
    }
    figures = report.figures
    # Krippendorff's alpha by hand: one answer has the labels + + - and another + -, together 3 and 2.
    assert (figures["pairs"], figures["pairs_by_several_raters"]) == (0, 2)
    observed = (4 / 2 + 2 / 1) / 5
    expected = (25 - (9 + 4)) / (5 * 4)
    assert figures["rater_agreement"] == pytest.approx(1 - observed / expected)


def test_a_run_without_labels_is_no_fault(tmp_path: Path) -> None:
    report = check(tmp_path, [], "unpaired")
    assert (report.rows_in, report.validated) == (0, 0)
    assert (tmp_path / "validated.jsonl").read_bytes() == b""
