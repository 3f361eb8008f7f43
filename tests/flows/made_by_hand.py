"""A workspace made by hand, of whose models and rows every answer is known."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.provenance import rows as rows_module
from tasks.fitted import answer
from tasks.support.lineage import Lineage

REPOSITORY = Path(__file__).parents[2]
NO_ID = {"prompt": "Who is it?", "completion": "A row without an id."}
DEMONSTRATIONS = [
    *({"id": f"d-{i}", "prompt": f"What is box {i}?", "completion": f"Number {i}."} for i in range(10)),
    NO_ID,
]
DIRTY = {"id": "d-dirty", "prompt": "What?", "completion": ""}
OLD = {"id": "d-old", "prompt": "What had it been?", "completion": "It was removed."}
PREFERENCES = [
    {"id": f"p-{i}", "prompt": f"Which is box {i}?", "chosen": f"Number {i}.", "rejected": "None."}
    for i in range(6)
]
PREFERENCES[4]["skipped"] = True
PROMPTS = [{"id": f"r-{i}", "prompt": f"Where is box {i}?"} for i in range(8)]
EVALUATION = [{"id": "e-0", "prompt": "How many boxes are there?"}]
TEXT = [{"id": "t-0", "text": "A box."}]
ENVIRONMENT = {"device": "cpu", "threads": 2, "processes": 1, "torch": "2.13.0"}


def held_apart(row: Mapping[str, Any], share: float, purpose: str) -> bool:
    digest = hashlib.sha256(f"{purpose}\n{row['prompt'].lower()}".encode()).digest()
    return int.from_bytes(digest[:8], "little") < share * 2**64


HELD = [row["id"] for row in DEMONSTRATIONS[:10] if held_apart(row, 0.3, "sft")]


class Hand:
    """A workspace with dvc.lock, cache, run-cache and git, none of which a tool wrote."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stages: dict[str, Any] = {}
        self.content: dict[str, str] = {}

    def keep(self, data: bytes, suffix: str = "") -> str:
        digest = hashlib.md5(data).hexdigest() + suffix
        path = self.cached(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest

    def cached(self, digest: str) -> Path:
        return self.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]

    def file(self, path: str, value: Any) -> str:
        """Writes JSON, or rows, here and into the cache; returns the hash."""
        lines = value if path.endswith(".jsonl") else [value]
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)
        self.content[path] = self.keep(data)
        return self.content[path]

    def model(self, name: str, weights: str) -> str:
        folder = self.root / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_text(weights)
        listing = [{"md5": self.keep(weights.encode()), "relpath": "model.safetensors"}]
        self.content[f"models/{name}"] = self.keep(json.dumps(listing).encode(), ".dir")
        return self.content[f"models/{name}"]

    def stage(
        self,
        stage: str,
        command: str,
        deps: list[str],
        outs: list[str],
        params: Mapping[str, Any] | None = None,
        record: Mapping[str, Any] | None = None,
        run: str = "1",
    ) -> dict[str, Any]:
        """An entry of dvc.lock, with a record beside its outputs."""
        label = stage.replace("ppo@", "").replace("@", "-")
        made = {
            "stage": stage,
            "key": f"key-{stage}-{run}",
            "run": f"run-{stage}-{run}",
            "pipeline": f"pipeline-{run}",
            **(record or {}),
        }
        self.file(f"runs/{label}.json", made)
        entry = {
            "cmd": command,
            "deps": [{"path": path, "md5": self.content.get(path, "0" * 32)} for path in deps],
            "params": {"params.yaml": dict(params or {}), "runs/environment.json": ENVIRONMENT},
            "outs": [{"path": path, "md5": self.content[path]} for path in [*outs, f"runs/{label}.json"]],
        }
        self.stages[stage] = entry
        return entry

    def write_lock(self) -> None:
        (self.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": self.stages}))

    def remember(self, entry: Mapping[str, Any]) -> None:
        """Puts an entry into the run-cache alone."""
        text = yaml.safe_dump(dict(entry))
        name = hashlib.sha256(text.encode()).hexdigest()
        path = self.root / ".dvc/cache/runs" / name[:2] / name / name
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def git(self, *arguments: str) -> str:
        name = ["-c", "user.name=t", "-c", "user.email=t@t"]
        done = subprocess.run(
            ["git", *name, *arguments], cwd=self.root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def lineage(self) -> Lineage:
        return Lineage(self.root)


def data_stages(hand: Hand, demonstrations: list[dict[str, Any]], run: str = "1") -> None:
    kinds = {
        "text": TEXT,
        "demonstrations": demonstrations,
        "preferences": PREFERENCES,
        "prompts": PROMPTS,
        "evaluation": EVALUATION,
    }
    for kind, rows in kinds.items():
        hand.file(f"data/raw/{kind}.jsonl", [*rows, DIRTY] if kind == "demonstrations" else rows)
    hand.file("metrics/ingest.json", {"sources": {"world": {}, "001-native": {}}})
    raw = [f"data/raw/{kind}.jsonl" for kind in kinds]
    hand.stage("ingest", "python -m tasks.ingest", ["data/sources"], [*raw, "metrics/ingest.json"], run=run)
    for kind, rows in kinds.items():
        put_away = [{"row": DIRTY, "reasons": []}] if kind == "demonstrations" else []
        hand.file(f"data/validated/{kind}.jsonl", rows)
        hand.file(f"data/quarantine/{kind}.jsonl", put_away)
        outs = [f"data/validated/{kind}.jsonl", f"data/quarantine/{kind}.jsonl"]
        hand.stage(
            f"validate@{kind}", f"python -m tasks.validate {kind}", [f"data/raw/{kind}.jsonl"], outs, run=run
        )


@pytest.fixture
def hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hand:
    """base <- sft <- reward, ppo; an sft and a ppo of before stand in the run-cache alone."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_REMOTE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(
        rows_module, "_ask", lambda root, asked: [answer(q) for q in json.loads(json.dumps(asked))]
    )
    made = Hand(tmp_path)
    (tmp_path / "dvc.yaml").write_text((REPOSITORY / "dvc.yaml").read_text())
    (tmp_path / "params.yaml").write_text("seed: 0\nsft: {holdout: 0.3, batch_size: 4}\nppo: {steps: 9}\n")
    (tmp_path / ".gitignore").write_text("/.dvc/cache/\n/data/\n/models/\n/runs/\n/metrics/\ndvc.lock\n")
    made.git("init", "-q", "-b", "main")
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "a workspace")
    record = {"git_commit": made.git("rev-parse", "HEAD"), "git_dirty": True}
    valid = "data/validated/{}.jsonl".format
    sft = {"seed": 0, "sft": {"holdout": 0.3, "batch_size": 4}}
    ppo = {
        "seed": 0,
        "ppo": {"steps": 1, "batch_size": 4, "minibatches": 1, "select_prompts": 2},
        "policies.ppo.ppo": {},
    }
    ppo_deps = ["models/sft", "models/reward", valid("prompts"), valid("demonstrations")]

    def models(word: str, run: str) -> list[dict[str, Any]]:
        made.model("base", "base")
        base = made.stage(
            "base", "python -m tasks.base", [valid("text")], ["models/base"], {"base": {}}, record
        )
        made.model("sft", f"sft {word}")
        first = made.stage(
            "sft",
            "python -m tasks.sft",
            ["models/base", valid("demonstrations")],
            ["models/sft"],
            sft,
            record,
            run,
        )
        made.model("reward", f"reward {word}")
        reward = made.stage(
            "reward",
            "python -m tasks.reward",
            ["models/base", "models/sft", valid("preferences"), valid("prompts")],
            ["models/reward"],
            {"seed": 0, "reward": {"holdout": 0.0, "normalise_prompts": 3}},
            record,
            run,
        )
        made.model("ppo", f"ppo {word}")
        second = made.stage("ppo@ppo", "python -m tasks.ppo ppo", ppo_deps, ["models/ppo"], ppo, record, run)
        return [base, first, reward, second]

    data_stages(made, [*DEMONSTRATIONS, OLD], "0")
    before = [entry for name, entry in made.stages.items() if "demonstrations" in name or name == "ingest"]
    for entry in [*before, *models("of before", "0")[1:]]:
        made.remember(entry)
    data_stages(made, DEMONSTRATIONS)
    models("of now", "1")
    made.file("metrics/evaluate/ppo.json", {"gold": {"mean": 1.5, "ci95": [1.0, 2.0]}, "kl_to_sft": 0.25})
    made.stage(
        "evaluate@ppo",
        "python -m tasks.evaluate ppo",
        ["models/ppo", "models/sft", valid("evaluation")],
        ["metrics/evaluate/ppo.json"],
    )
    made.write_lock()
    return made
