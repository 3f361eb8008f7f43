"""Stages without torch, for many runs in a row; a light workspace has this file as tasks/light.py.

Everything around the work is the project's own: `Stage`, recorder, curve, spool, locks, whole outputs. Only
the work is not: rows are hashed, and a training is a chain of hashes with checkpoints, each step a moment
long, so that its results follow from seed and inputs alone and a lost step shows in them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefloop.config.dpo import DPOConfig
from prefloop.config.ingest import IngestConfig
from prefloop.config.ppo import PPOConfig
from prefloop.config.report import ReportConfig
from prefloop.config.sft import SFTConfig
from prefloop.config.validate import ValidateConfig
from prefloop.errors import StopRequested
from prefloop.files import atomic_folder, read_json, read_jsonl, sha256_text, write_json
from tasks.support.stage import Stage

KINDS = ("demonstrations", "preferences")
ROWS = 400
STEP_SECONDS = 0.05
CHECKPOINT_STEPS = 8
MODEL_CHUNKS = 4096
READS = {
    "sft": ["data/validated/demonstrations.jsonl"],
    "ppo": ["models/sft", "data/validated/preferences.jsonl"],
    "dpo": ["models/sft", "data/validated/preferences.jsonl"],
}
CONFIGS: dict[str, Any] = {"sft": SFTConfig, "ppo": PPOConfig, "dpo": DPOConfig}


def ingest() -> None:
    """Writes data/raw."""
    with Stage.open("ingest", IngestConfig) as stage:
        for kind in KINDS:
            with stage.output_file(f"data/raw/{kind}.jsonl") as handle:
                for number in range(ROWS):
                    text = sha256_text(f"{stage.seed} {kind} {number}")
                    handle.write(json.dumps({"id": f"{kind}-{number}", "prompt": text}) + "\n")
        stage.metrics({"rows": dict.fromkeys(KINDS, ROWS)})


def sort() -> None:
    """Writes data/validated and data/quarantine."""
    with Stage.open("sort", ValidateConfig, section="validate") as stage:
        counts = {}
        for kind in KINDS:
            rows = list(read_jsonl(f"data/raw/{kind}.jsonl"))
            bad = [row for row in rows if row["prompt"].startswith("0")]
            good = [row for row in rows if not row["prompt"].startswith("0")]
            for folder, kept in (("validated", good), ("quarantine", bad)):
                with stage.output_file(f"data/{folder}/{kind}.jsonl") as handle:
                    handle.writelines(json.dumps(row) + "\n" for row in kept)
            counts[kind] = {"validated": len(good), "quarantined": len(bad)}
        stage.metrics(counts)


def fit(name: str) -> None:
    """Writes models/NAME."""
    with Stage.open(name, CONFIGS[name]) as stage:
        for path in READS[name]:
            stage.dataset(Path(path).stem, path)
        state = hashlib.sha256(f"{stage.seed} {name}".encode() + b"".join(contents(READS[name]))).hexdigest()
        folder, steps = stage.scratch / "checkpoints", int(stage.config.steps)
        done, state = latest(folder) or (0, state)
        stage.recorder.resume(done)
        for step in range(done + 1, steps + 1):
            time.sleep(STEP_SECONDS)
            state = sha256_text(f"{state} {step}")
            stage.recorder.log(step, steps, figures(state))
            asked = stage.recorder.stop_requested()
            if asked or step % CHECKPOINT_STEPS == 0:
                stage.recorder.checkpoint(step, save(folder, step, state))
            if asked:
                raise StopRequested
        with stage.output(f"models/{name}") as output:
            (output / "weights").write_text("".join(sha256_text(f"{state} {n}") for n in range(MODEL_CHUNKS)))
        stage.metrics({"final": figures(state)["loss"], "steps": steps})


def report() -> None:
    """Writes metrics/evaluate.json and reports/report.html."""
    with Stage.open("report", ReportConfig) as stage:
        found = {name: read_json(f"metrics/{name}.json") for name in CONFIGS}
        with stage.output_file("reports/report.html") as handle:
            handle.write(f"<html>{json.dumps(found, sort_keys=True)}</html>")
        stage.metrics(found, "metrics/evaluate.json")


def figures(state: str) -> dict[str, float]:
    """Metrics of a step."""
    return {"loss": int(state[:8], 16) / 2**32, "kl": int(state[8:16], 16) / 2**32}


def save(folder: Path, step: int, state: str) -> Path:
    """A checkpoint, whole or absent; the two newest stay."""
    with atomic_folder(folder / f"checkpoint-{step:08d}") as draft:
        write_json(draft / "checkpoint.json", {"step": step, "state": state, "sha256": sha256_text(state)})
    for old in sorted(folder.glob("checkpoint-*"))[:-2]:
        shutil.rmtree(old, ignore_errors=True)
    return folder / f"checkpoint-{step:08d}"


def latest(folder: Path) -> tuple[int, str] | None:
    """The newest checkpoint that is whole."""
    for path in sorted(folder.glob("checkpoint-*"), reverse=True):
        try:
            found = json.loads((path / "checkpoint.json").read_text())
        except (OSError, ValueError):
            continue
        if sha256_text(found["state"]) == found["sha256"]:
            return int(found["step"]), str(found["state"])
    return None


def contents(paths: list[str]) -> Iterator[bytes]:
    """Bytes of files, and of those in folders."""
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                yield file.read_bytes()


def main() -> None:
    """Runs the stage that the first argument names."""
    what = sys.argv[1]
    fixed = {"ingest": ingest, "sort": sort, "report": report}
    fixed[what]() if what in fixed else fit(what)


if __name__ == "__main__":
    main()
