"""Validating one kind: each row is measured, judged, and passed on or quarantined with its reasons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from prefloop.config.validate import Expectation, ValidateConfig
from prefloop.data.records import parse_row, plain
from prefloop.data.validation.features import COLUMNS, CountTokens, content_key, count_words, measure
from prefloop.data.validation.near import Bands, near_duplicates, words_of
from prefloop.data.validation.pairs import PairLog
from prefloop.data.validation.rowfile import RowFile, where
from prefloop.data.validation.suite import LINKS, judge_figures, judge_rows
from prefloop.data.validation.table import FeatureWriter, read_column, read_pieces
from prefloop.errors import DataError, ModelError
from prefloop.files import atomic_file
from prefloop.models.folder_check import check_folder
from prefloop.models.hub import is_hub_id, local_copy

Int = npt.NDArray[np.int64]

_ALL: Final = ("readable", "schema", "encoding", "no_secrets", "no_personal_data", "quarantined_share")
_PROMPTED: Final = ("prompt_not_empty", "roles_alternate", "length", "no_duplicate", "no_near_duplicate")
_ANSWERED: Final = ("completion_not_empty", "ends_with_assistant")
_COMPARED: Final = (
    "completions_differ",
    "same_prompt",
    "consistent_preference",
    "length_balance",
    "rater_agreement",
)
_NEEDED: Final = ("usable_rows",)
APPLICABLE: Final[Mapping[str, tuple[str, ...]]] = {
    "text": (*_ALL, "completion_not_empty", "no_duplicate_text"),
    "demonstrations": (*_ALL, *_PROMPTED, *_ANSWERED, *_NEEDED),
    "preferences": (*_ALL, *_PROMPTED, *_ANSWERED, *_COMPARED, *_NEEDED),
    "judge": (*_ALL, *_PROMPTED, *_ANSWERED, *_COMPARED),
    "unpaired": (*_ALL, *_PROMPTED, *_ANSWERED, "consistent_preference", "rater_agreement"),
    "prompts": (*_ALL, *_PROMPTED, *_NEEDED),
    "evaluation": (*_ALL, *_PROMPTED, *_NEEDED),
    "held_out": (*_ALL, *_PROMPTED, *_ANSWERED, *_COMPARED),
}
"""The expectations that each kind is held to."""


@dataclass(frozen=True)
class Finding:
    """What came of one expectation about one kind.

    Attributes:
        name: the expectation.
        severity, threshold: as applied.
        met: True if it holds.
        rows: how many rows break it; 0 for expectations about a whole kind.
        figure: what was compared with the threshold, for expectations about a whole kind.
        examples: {"row" (1-based, of data/raw), "where", "detail"} of the first few.
    """

    name: str
    severity: str
    threshold: float
    met: bool
    rows: int
    figure: float | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class KindReport:
    """The validation of one kind.

    Attributes:
        kind: which.
        rows_in, validated, quarantined: counts; the first is the sum of the others.
        reasons: quarantined rows by expectation; a row may have several.
        figures: what describes the kind: lengths in tokens, ties, skipped rows, preference for length,
            agreement.
        sources: rows by the file or import that they came from.
        findings: one an expectation.
    """

    kind: str
    rows_in: int
    validated: int
    quarantined: int
    reasons: dict[str, int]
    figures: dict[str, float | None]
    sources: dict[str, int]
    findings: list[Finding]


def check_kind(
    kind: str, raw: Path, validated: Path, quarantine: Path, config: ValidateConfig, scratch: Path
) -> KindReport:
    """Validates data/raw/KIND.jsonl.

    Args:
        kind: one of `prefloop.data.records.KINDS`.
        raw: rows as ingested.
        validated: rows that may be used, byte for byte as they stood.
        quarantine: rows that may not, `{"row", "reasons": [{"expectation", "detail"}], "source", "line"}`.
        config: expectations.
        scratch: folder for temporary files.

    Raises:
        DataError: an expectation of severity `error` is broken (the rows are named), or rows went missing (a
            defect). Neither file is written then.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    wanted = {name: config.expectation(name) for name in APPLICABLE[kind]}
    active = {name: e for name, e in wanted.items() if e.severity != "off"}
    count_tokens = token_counter(config.tokenizer)
    features = scratch / f"{kind}.parquet"
    with RowFile(raw) as rows:
        measured = _measure_all(kind, rows, active, config, features, count_tokens)
        pieces = read_pieces(features, measured.links)
        row_checks = {name: e for name, e in active.items() if name in COLUMNS or name in LINKS}
        broken = (
            judge_rows(pieces, row_checks)
            if len(rows)
            else {name: np.empty(0, np.int64) for name in row_checks}
        )
        bad = np.zeros(len(rows), bool)
        for name, positions in broken.items():
            if active[name].severity == "quarantine":
                bad[positions] = True
        explain = _Explainer(kind, rows, measured.links, count_tokens)
        figures = _figures(measured, bad, features)
        met = judge_figures(figures, active) if len(rows) or "usable_rows" in active else {}
        findings = [
            _finding(
                name, active[name], broken.get(name), met.get(name, True), figures, explain, config.examples
            )
            for name in active
        ]
        _stop_on_errors(kind, findings, len(rows))
        reasons = _write(rows, bad, broken, active, explain, validated, quarantine)
        report = KindReport(
            kind,
            len(rows),
            len(rows) - int(bad.sum()),
            int(bad.sum()),
            reasons,
            figures,
            measured.sources,
            findings,
        )
    features.unlink()
    return report


def token_counter(tokenizer: str) -> CountTokens:
    """Counts tokens with a tokenizer of a folder or hub id; words and punctuation marks if it is empty.

    Raises:
        ModelError: there is no such tokenizer.
    """
    if not tokenizer:
        return count_words
    from transformers import AutoTokenizer

    folder = local_copy(tokenizer, None, weights=False) if is_hub_id(tokenizer) else Path(tokenizer)
    if folder.is_dir():
        check_folder(folder)
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"validate.tokenizer {tokenizer!r} cannot be loaded: {error}",
            "name a folder or hub id with a tokenizer, or leave it empty to count words",
        ) from error
    return lambda text: len(loaded(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass
class _Measurements:
    """What one pass over the rows gives besides the feature table."""

    links: dict[str, Int] = field(default_factory=dict)
    pairs: PairLog = field(default_factory=PairLog)
    sources: dict[str, int] = field(default_factory=dict)
    unjudged: Int = field(default_factory=lambda: np.empty(0, np.int64))


def _measure_all(
    kind: str,
    rows: RowFile,
    active: Mapping[str, Expectation],
    config: ValidateConfig,
    features: Path,
    count_tokens: CountTokens,
) -> _Measurements:
    measured = _Measurements()
    sources: Counter[str] = Counter()
    unjudged: list[int] = []
    near = active.get("no_near_duplicate")
    bands = Bands(config.permutations, near.threshold, features.parent) if near else None
    with FeatureWriter(features) as table:
        for position, row in enumerate(rows.rows()):
            found = measure(kind, row, count_tokens)
            example = found.example
            table.add(found.columns, content_key(kind, row, example) if example else None)
            sources[str(row.get("source") or "unnamed")] += 1
            if row.get("both_bad") or row.get("skipped"):
                unjudged.append(position)
            if example and example.ranks:
                measured.pairs.add(position, row, example, count_tokens)
            elif example and kind == "unpaired":
                measured.pairs.add_label(position, row, example)
            if bands:
                bands.add(_parts(row, kind) if example else [])
    keys = read_column(features, "content")
    measured.links["duplicate_of"] = first_occurrences(keys, read_column(features, "misshapen") == 0)
    measured.links["contradicts"] = measured.pairs.contradictions(len(rows))
    measured.links["near_duplicate_of"] = np.full(len(rows), -1, np.int64)
    if bands and near:
        _link_near(kind, rows, bands, near.threshold, measured.links)
        bands.close()
    measured.sources, measured.unjudged = dict(sources), np.array(unjudged, np.int64)
    return measured


def first_occurrences(keys: npt.NDArray[np.uint64], valid: npt.NDArray[np.bool_]) -> Int:
    """For each key the position at which it stood first, or -1 if that is here or the key is not valid."""
    earlier = np.full(len(keys), -1, np.int64)
    positions = np.flatnonzero(valid)
    _, first, inverse = np.unique(keys[valid], return_index=True, return_inverse=True)
    origin = positions[first][inverse] if len(positions) else positions
    repeated = origin != positions
    earlier[positions[repeated]] = origin[repeated]
    return earlier


def _parts(row: Mapping[str, Any], kind: str) -> list[list[str]]:
    """Words of a row's prompt and of its completions."""
    example = parse_row(kind, row)
    texts = [plain(example.prompt), " ".join(plain(completion) for completion in example.completions)]
    return [words_of(text) for text in texts]


def _link_near(kind: str, rows: RowFile, bands: Bands, threshold: float, links: dict[str, Int]) -> None:
    """Checks the candidates exactly; exact duplicates are another expectation's."""
    for later, earlier in bands.candidates():
        if links["near_duplicate_of"][later] >= 0 or links["duplicate_of"][later] >= 0:
            continue
        if near_duplicates(_parts(rows.row(later), kind), _parts(rows.row(earlier), kind), threshold):
            links["near_duplicate_of"][later] = earlier


class _Explainer:
    """Words for why a row breaks an expectation; rows are measured again, for few are asked about."""

    def __init__(self, kind: str, rows: RowFile, links: Mapping[str, Int], count_tokens: CountTokens) -> None:
        self._kind, self._rows, self._links, self._count = kind, rows, links, count_tokens

    def __call__(self, name: str, position: int) -> str:
        if name in LINKS:
            other = int(self._links[LINKS[name]][position])
            words = {"contradicts": "prefers the opposite of", "near_duplicate_of": "is nearly the same as"}
            verb = words.get(LINKS[name], "says the same as")
            return f"{verb} row {other + 1} ({where(self._rows.row(other))})"
        return measure(self._kind, self._rows.row(position), self._count).notes.get(name, name)

    def example(self, name: str, position: int) -> dict[str, Any]:
        """Where the row stands and what is wrong with it."""
        row = self._rows.row(position)
        return {"row": position + 1, "where": where(row), "detail": self(name, position)}


def _figures(measured: _Measurements, bad: npt.NDArray[np.bool_], features: Path) -> dict[str, float | None]:
    tokens = read_column(features, "tokens")
    tokens = tokens[tokens >= 0]
    alpha, judged_by_several = measured.pairs.agreement()
    share = measured.pairs.longer_share
    usable = ~bad
    usable[measured.unjudged] = False
    quantiles = np.percentile(tokens, (50, 95, 100)) if len(tokens) else (None, None, None)
    return {
        "usable_rows": float(usable.sum()),
        "quarantined_share": float(bad.mean()) if len(bad) else 0.0,
        "unjudged_rows": float(len(measured.unjudged)),
        "tokens_median": _number(quantiles[0]),
        "tokens_p95": _number(quantiles[1]),
        "tokens_max": _number(quantiles[2]),
        "pairs": float(len(measured.pairs)),
        "ties": float(measured.pairs.ties),
        "longer_chosen": share,
        "length_balance": None if share is None else abs(share - 0.5),
        "pairs_by_several_raters": float(judged_by_several),
        "rater_agreement": alpha,
    }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _finding(
    name: str,
    expectation: Expectation,
    positions: Int | None,
    met: bool,
    figures: Mapping[str, float | None],
    explain: _Explainer,
    examples: int,
) -> Finding:
    if positions is None:
        return Finding(name, expectation.severity, expectation.threshold, met, 0, figures.get(name))
    named = [explain.example(name, int(position)) for position in positions[:examples]]
    severity, threshold = expectation.severity, expectation.threshold
    return Finding(name, severity, threshold, not len(positions), len(positions), None, named)


def _stop_on_errors(kind: str, findings: list[Finding], rows: int) -> None:
    broken = [finding for finding in findings if finding.severity == "error" and not finding.met]
    if not broken:
        return
    messages = []
    for finding in broken:
        if finding.rows:
            named = "; ".join(f"{e['where']}: {e['detail']}" for e in finding.examples)
            more = (
                f"; and {finding.rows - len(finding.examples)} more"
                if finding.rows > len(finding.examples)
                else ""
            )
            messages.append(f"{finding.rows} of {rows} rows break {finding.name}: {named}{more}")
        else:
            found = f"{finding.figure:.4g}, threshold {finding.threshold:g}"
            messages.append(f"{finding.name} is {found} ({rows} rows came in){_main_reasons(findings)}")
    names = ", ".join(finding.name for finding in broken)
    raise DataError(
        f"{kind}: " + "\n  ".join(messages),
        f"mend the data and import it again, or change validate.expectations ({names}) in params.yaml",
    )


def _main_reasons(findings: list[Finding]) -> str:
    quarantining = [f for f in findings if f.severity == "quarantine" and f.rows]
    if not quarantining:
        return ""
    worst = max(quarantining, key=lambda finding: finding.rows)
    example = worst.examples[0]
    return f"; most often {worst.name} ({worst.rows} rows), as in {example['where']}: {example['detail']}"


def _write(
    rows: RowFile,
    bad: npt.NDArray[np.bool_],
    broken: Mapping[str, Int],
    active: Mapping[str, Expectation],
    explain: Callable[[str, int], str],
    validated: Path,
    quarantine: Path,
) -> dict[str, int]:
    """Passes each row on or puts it away; returns quarantined rows by reason."""
    quarantining = {
        name: set(map(int, p)) for name, p in broken.items() if active[name].severity == "quarantine"
    }
    reasons: Counter[str] = Counter()
    passed, put_away = 0, 0
    with atomic_file(validated, "wb") as good, atomic_file(quarantine) as aside:
        for position, line in enumerate(rows.lines()):
            if not bad[position]:
                good.write(line if line.endswith(b"\n") else line + b"\n")
                passed += 1
                continue
            why = [name for name, positions in quarantining.items() if position in positions]
            reasons.update(why)
            row = json.loads(line)
            entry = {
                "row": row,
                "reasons": [{"expectation": name, "detail": explain(name, position)} for name in why],
                "source": row.get("source"),
                "line": row.get("line"),
            }
            aside.write(json.dumps(entry, ensure_ascii=False) + "\n")
            put_away += 1
        if passed + put_away != len(bad):
            raise DataError(
                f"{rows.path}: {len(bad)} rows were measured, {passed + put_away} written", "run again"
            )
    return dict(reasons)
