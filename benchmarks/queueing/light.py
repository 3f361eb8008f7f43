"""Stages that do no work, with all that surrounds one, and a line about each of them that is run.

    python -m tasks.light STAGE [FILE ...]          the files are what it reads

A workspace of the benchmark has it in tasks/. The lines go to .prefloop/witness.jsonl; they are written
before anything is known to DVC, Prefect or MLflow, so what was run twice or for nobody stands there, too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from prefloop.config.dpo import DPOConfig
from prefloop.config.ingest import IngestConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.report import ReportConfig
from prefloop.config.reward import RewardConfig
from prefloop.config.sft import SFTConfig
from prefloop.files import sha256_text
from tasks import environment
from tasks.support.stage import Stage

SECTIONS: dict[str, type[Any]] = {
    "ingest": IngestConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "ppo": PPOConfig,
    "dpo": DPOConfig,
    "report": ReportConfig,
}
WITNESS = Path(".prefloop/witness.jsonl")
STEPS = 20


def main() -> None:
    """Writes models/STAGE, data/raw/rows.txt or reports/report.html, which follow from what it reads."""
    name, *reads = sys.argv[1:]
    if name == "environment":  # the first of every run, with work or without
        testify(name, "")
        environment.main()
        return
    with Stage.open(name, SECTIONS[name]) as stage:
        testify(name, stage.key)
        text = sha256_text("".join([stage.key, *map(contents, reads)]))
        if name == "ingest":
            with stage.output_file(Path("data/raw/rows.txt")) as handle:
                handle.write(text)
        elif name == "report":
            with stage.output_file(Path("reports/report.html")) as handle:
                handle.write(text)
        else:
            for step in range(1, STEPS + 1):
                stage.tracker.metrics(step, {"loss": 1 / step, "grad_norm": 1.0, "learning_rate": 1e-4})
            with stage.output(Path("models") / name) as folder:
                (folder / "weights").write_text(text, encoding="ascii")


def testify(stage: str, key: str) -> None:
    """One line: which stage, of which key, for which of the deployment's flow runs. Several may append."""
    runs = [path.name.removeprefix("flow-run-") for path in WITNESS.parent.glob("flow-run-*")]
    line = {"stage": stage, "key": key, "flow_runs": runs, "time": time.time(), "pid": os.getpid()}
    with open(WITNESS, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def contents(name: str) -> str:
    """Of a file, or of all files below a folder."""
    path = Path(name)
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return "".join(file.read_text(encoding="utf-8") for file in files if file.is_file())


if __name__ == "__main__":
    main()
