"""Stage validate@KIND: holds one kind of rows to its expectations; what breaks them is quarantined."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

from prefloop.config.parse import nearest
from prefloop.config.validate import ValidateConfig
from prefloop.data.records import KINDS
from prefloop.data.validation.checking import check_kind
from prefloop.data.validation.summary import metrics_of
from prefloop.errors import ConfigError
from prefloop.files import write_json
from tasks.support.stage import Stage


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) == 2 else ""
    if kind not in KINDS:
        raise SystemExit(str(ConfigError(f"validate: unknown kind {kind!r}", nearest(kind, KINDS))))
    with Stage.open("validate", ValidateConfig, part=kind) as stage:
        raw = Path(f"data/raw/{kind}.jsonl")
        stage.dataset(kind, raw)
        report = check_kind(
            kind,
            raw,
            Path(f"data/validated/{kind}.jsonl"),
            Path(f"data/quarantine/{kind}.jsonl"),
            stage.config,
            stage.scratch,
        )
        write_json(f"reports/validation/{kind}.json", asdict(report))
        stage.metrics(metrics_of(report))
        stage.say(f"{report.rows_in} rows: {report.validated} validated, {report.quarantined} quarantined")


if __name__ == "__main__":
    main()
