"""A workspace for housekeeping: git, DVC with two stages of a line of shell each, and two branches.

The stages' content follows from `ingest.value` and `sft.value`; `runs/sft.json` has the key `sft-INGEST-SFT`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

from dvc.repo import Repo

from flows.cli.gc import command
from flows.planning.planner import make_plan, open_repo

PIPELINE = """
stages:
  ingest:
    cmd: sh stage.sh ingest
    deps: [source.txt]
    params: [ingest]
    outs: [data/raw, runs/ingest.json]
  sft:
    cmd: sh stage.sh sft
    deps: [data/raw]
    params: [sft]
    outs: [models/sft, runs/sft.json]
    metrics:
      - metrics/sft.json: {cache: false}
"""

STAGE = """
ingest=$(sed -n 's/^ingest: {value: \\(.*\\)}/\\1/p' params.yaml)
sft=$(sed -n 's/^sft: {value: \\(.*\\)}/\\1/p' params.yaml)
mkdir -p runs data/raw models/sft metrics .prefloop
if [ $1 = ingest ]; then
  echo "rows of $ingest" > data/raw/rows; key=ingest-$ingest
else
  cat data/raw/rows > models/sft/weights; echo "sft of $sft" >> models/sft/weights; key=sft-$ingest-$sft
  echo "{\\"loss\\": \\"$key\\"}" > metrics/sft.json
fi
echo $key >> .prefloop/ran.log
sed "s/KEY/$key/g; s/STAGE/$1/" > runs/$1.json <<END
{"stage": "STAGE", "run": "run-KEY", "key": "KEY", "pipeline": "pipe-KEY"}
END
"""


class Kept:
    """The workspace, which is the current folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "source.txt").write_text("a source\n")
        (root / "dvc.yaml").write_text(PIPELINE.lstrip())
        (root / "stage.sh").write_text(STAGE.lstrip())
        (root / ".gitignore").write_text("/.prefloop/\n/models/\n/metrics/\n/runs/\n/data/\n")
        self.git("init", "-q", "-b", "main")
        Repo.init(str(root)).close()
        self.values(1, 1)
        self.run()
        self.commit()

    def values(self, ingest: int, sft: int) -> None:
        (self.root / "params.yaml").write_text(
            f"ingest: {{value: {ingest}}}\nsft: {{value: {sft}}}\ntracking: {{experiment: test}}\n"
        )

    def run(self, *, pull: bool = False) -> list[str]:
        """`dvc repro`, also from the remote with `pull`; returns the keys of the stages whose command ran."""
        log = self.root / ".prefloop/ran.log"
        log.unlink(missing_ok=True)
        with Repo(str(self.root)) as repo, contextlib.redirect_stdout(io.StringIO()):
            repo.reproduce(pull=pull)
        return log.read_text().split() if log.exists() else []

    def git(self, *arguments: str) -> str:
        who = {f"GIT_{role}_{what}": "t@t" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = {**os.environ, **who, "GIT_CONFIG_GLOBAL": os.devnull}
        done = subprocess.run(
            ["git", *arguments], cwd=self.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "a state")

    def branch(self, name: str, ingest: int, sft: int) -> None:
        """A branch with values of its own, run and committed; main is checked out again."""
        self.git("checkout", "-q", "-b", name)
        self.values(ingest, sft)
        self.run()
        self.commit()
        self.checkout("main")

    def checkout(self, name: str) -> None:
        """`git checkout` and `dvc checkout`."""
        self.git("checkout", "-q", name)
        with Repo(str(self.root)) as repo:
            repo.checkout(force=True)

    def plan(self) -> dict[str, str]:
        return {stage.name: stage.action.value for stage in make_plan(open_repo(self.root)).stages}

    def weights(self) -> str:
        return (self.root / "models/sft/weights").read_text()

    def objects(self) -> list[Path]:
        """Every file of DVC's cache, the run-cache's included."""
        return [path for path in (self.root / ".dvc/cache").rglob("*") if path.is_file()]


def gc(
    *, only: str = "", older_than: str = "0d", yes: bool = False, shared_cache: bool = False
) -> dict[str, Any]:
    """What `prefloop gc --json` prints: the items of each category."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        command(
            only=only, older_than=older_than, yes=yes, dry_run=False, shared_cache=shared_cache, as_json=True
        )
    return dict(json.loads(output.getvalue())["categories"])


def going(category: dict[str, Any], kind: str) -> set[str]:
    """Names of the items of a kind that go."""
    return {item["name"] for item in category["items"] if item["goes"] and item["kind"] == kind}
