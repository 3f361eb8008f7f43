"""Every real file imports; counts are taken here a second time, in other words."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from prefloop.config.validate import ValidateConfig
from prefloop.data.importing import import_files
from prefloop.data.validation.checking import KindReport, check_kind

HH = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")


def raw(file: Path) -> list[Any]:
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


@pytest.mark.parametrize(
    ("format", "pattern", "rows"),
    [
        ("hh-rlhf", "hh-rlhf/*.jsonl.gz", {"preferences": 1841 + 1812 + 883 + 2155}),
        ("sharegpt", "format-samples/dpo_en_demo.jsonl.gz", {"preferences": 300}),
        ("kto", "format-samples/kto_en_demo.jsonl.gz", {"unpaired": 300}),
        ("gsm8k", "gsm8k/train.jsonl.gz", {"demonstrations": 7473}),
        ("alpaca", "dolly/dolly_3k.jsonl.gz", {"demonstrations": 2996}),
        ("self-instruct", "self-instruct/seed_tasks.jsonl", {"demonstrations": 175}),
        ("text", "public-domain-text/*.jsonl.gz", {"text": 313 + 65}),
        ("openai-rbr", "openai-rbr/rbr_gold_train.jsonl.gz", {"prompts": 351}),
        ("anthropic-evals", "anthropic-evals/*.jsonl.gz", {"prompts": 2000}),
    ],
)
def test_rows_are_those_that_the_publishers_count(
    shared_data: Path, tmp_path: Path, format: str, pattern: str, rows: dict[str, int]
) -> None:
    version = import_files(format, sorted(shared_data.glob(pattern)), {}, tmp_path)
    assert (version.rows, version.invalid, version.empty) == (rows, 0, 0)


def test_open_assistant_has_a_comparison_for_each_message_with_ranked_replies(
    shared_data: Path, tmp_path: Path
) -> None:
    file = shared_data / "open-assistant/en_100_tree.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        text = handle.read()
    best = len(re.findall(r'"rank": 0\b', text))  # each group of ranked siblings has one best
    ranked = len(re.findall(r'"rank": \d+', text))
    version = import_files("open-assistant", [file], {}, tmp_path)
    rows = [json.loads(line) for line in (version.folder / "preferences.jsonl").read_text().splitlines()]
    assert (len(rows), version.invalid) == (best, 0)
    assert sum(len(row["ranks"]) for row in rows) == ranked
    assert all(sorted(row["ranks"]) == list(range(len(row["ranks"]))) for row in rows)


def test_fine_grained_judgments_all_arrive(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "fine-grained-rlhf/qa_dev_feedback.jsonl.gz"
    ties = sum(record["preference"].count(0) for record in raw(file))
    version = import_files("fine-grained-rlhf", [file], {}, tmp_path)
    rows = [json.loads(line) for line in (version.folder / "preferences.jsonl").read_text().splitlines()]
    pairs = [(a, b) for row in rows for i, a in enumerate(row["ranks"]) for b in row["ranks"][i + 1 :]]
    assert len(pairs) == 6 * 500
    assert sum(a == b for a, b in pairs) == ties


@pytest.fixture(scope="module")
def hh_report(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> KindReport:
    folder = tmp_path_factory.mktemp("hh")
    version = import_files("hh-rlhf", [shared_data / f"hh-rlhf/{name}.jsonl.gz" for name in HH], {}, folder)
    rows, out, aside = (version.folder / "preferences.jsonl", folder / "validated", folder / "quarantine")
    return check_kind("preferences", rows, out, aside, ValidateConfig(), folder)


@pytest.mark.slow
def test_hh_rows_with_equal_replies(shared_data: Path, hh_report: KindReport) -> None:
    records = [record for name in HH for record in raw(shared_data / f"hh-rlhf/{name}.jsonl.gz")]
    equal = sum(record["chosen"].strip() == record["rejected"].strip() for record in records)
    assert equal > 0
    assert hh_report.reasons["completions_differ"] == equal


@pytest.mark.slow
def test_hh_rows_that_part_early_or_end_on_the_user(shared_data: Path, hh_report: KindReport) -> None:
    records = [record for name in HH for record in raw(shared_data / f"hh-rlhf/{name}.jsonl.gz")]
    on_user = sum(
        any(record[side].rfind("\n\nHuman:") > record[side].rfind("\n\nAssistant:") for side in record)
        for record in records
    )
    early = 0
    for record in records:
        before = [
            [part.strip() for part in re.split(r"\n\n(?:Human|Assistant):", record[side])][:-1]
            for side in ("chosen", "rejected")
        ]
        early += before[0] != before[1]
    assert hh_report.reasons["ends_with_assistant"] == on_user
    assert hh_report.reasons["same_prompt"] == early
    assert hh_report.rows_in == len(records) == hh_report.validated + hh_report.quarantined


@pytest.mark.slow
def test_hh_length_preference_is_that_of_the_readme(shared_data: Path, tmp_path: Path) -> None:
    """About 59 % of helpful-base prefer the longer reply, about 44 % of harmless-base."""
    for name, share in (("helpful-base", 0.59), ("harmless-base", 0.44)):
        version = import_files("hh-rlhf", [shared_data / f"hh-rlhf/{name}.jsonl.gz"], {}, tmp_path)
        rows = version.folder / "preferences.jsonl"
        report = check_kind("preferences", rows, tmp_path / "v", tmp_path / "q", ValidateConfig(), tmp_path)
        longer = report.figures["longer_chosen"]
        assert longer is not None
        assert abs(longer - share) < 0.02
