"""A pipeline like the real one in shape, whose stages only hash, count and wait."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import psutil
import pytest

from flows.leftovers import unfinished
from flows.planning.planner import make_plan, open_repo
from flows.planning.show import as_json
from flows.prefect_database import provide_database
from flows.preparation import refresh
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]

WORK = '''
"""A stage: hashes what it reads into what it writes, in steps that it can resume from."""
import hashlib, json, os, pathlib, sys, time
import yaml
from tasks.support.locks import held
from tasks.support.signals import StopFlag

name, section, *rest = sys.argv[1:]
reads, writes = [part.split(",") for part in rest]
scratch = pathlib.Path(".prefloop/scratch") / name.replace("@", "-")
stop = StopFlag()


def content(path):
    path = pathlib.Path(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return b"".join(file.read_bytes() for file in files if not file.name.startswith("."))


def work():
    scratch.mkdir(parents=True, exist_ok=True)
    mark = scratch / "step"
    first = int(mark.read_text()) if mark.exists() else 0
    with open(".prefloop/ran.log", "a") as log:
        log.write(f"{name} {first}\\n")
    steps = int(os.environ.get("STEPS_" + name.split("@")[0].upper(), "0"))
    for step in range(first, steps):
        time.sleep(0.1)
        mark.write_text(str(step + 1))
        print(f"{name}  step {step + 1}/{steps}", file=sys.stderr, flush=True)
        if stop.number:
            sys.exit(stop.exit_code)
    if os.environ.get("FAIL") == name:
        print("the data set has no row", file=sys.stderr)
        sys.exit(3)
    values = yaml.safe_load(open("params.yaml")).get(section)
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in filter(None, reads):
        digest.update(content(path))
    for path in writes:
        target = pathlib.Path(path)
        if path.startswith("models/"):
            target.mkdir(parents=True, exist_ok=True)
            target = target / "weights"
        target.parent.mkdir(parents=True, exist_ok=True)
        if path == "metrics/evaluate.json":
            figures = {"gold": {"mean": 1.0, "ci95": [0.9, 1.1]}, "kl_to_sft": 0.5}
            policies = {"sft": figures, "ppo": figures}
            target.write_text(json.dumps({"policies": policies, "key": digest.hexdigest()}))
        else:
            target.write_text(json.dumps({"hash": digest.hexdigest()}))
    mark.unlink(missing_ok=True)


lock = pathlib.Path(".prefloop/locks") / f"{name.replace('@', '-')}.lock"
with held(lock, f"stage {name}"), stop.installed():
    stop.patient = True
    work()
'''

PIPELINE = """
stages:
  environment:
    cmd: python resolve.py
    always_changed: true
    params: [compute]
    outs:
      - runs/environment.json: {cache: false}
      - runs/code.json: {cache: false}
  ingest:
    cmd: python work.py ingest ingest data/sources data/raw/demonstrations.jsonl,data/raw/preferences.jsonl
    deps: [work.py, data/sources]
    params: [seed, ingest]
    outs: [data/raw/demonstrations.jsonl, data/raw/preferences.jsonl]
  sft:
    cmd: python tasks/sft.py sft sft data/raw/demonstrations.jsonl models/sft
    deps: [work.py, data/raw/demonstrations.jsonl]
    params:
      - sft
      - runs/environment.json:
      - runs/code.json: [sft]
    outs: [models/sft, runs/sft.json]
  ppo:
    cmd: python work.py ppo ppo models/sft,data/raw/preferences.jsonl models/ppo
    deps: [work.py, models/sft, data/raw/preferences.jsonl]
    params:
      - ppo
      - runs/environment.json:
    outs: [models/ppo]
  dpo:
    cmd: python work.py dpo dpo models/sft models/dpo
    deps: [work.py, models/sft]
    params: [dpo]
    outs: [models/dpo]
  evaluate:
    foreach: ${evaluate.policies}
    do:
      cmd: python work.py evaluate@${item} evaluate models/${item} metrics/evaluate/${item}.json
      deps: [work.py, 'models/${item}']
      params: [evaluate.batch_size]
      metrics: ['metrics/evaluate/${item}.json']
  report:
    cmd: python work.py report report metrics/evaluate metrics/evaluate.json,reports/report.html
    deps: [work.py, metrics/evaluate]
    params: [report]
    outs: [reports/report.html]
    metrics: [metrics/evaluate.json]
"""

PARAMS = """\
# Parameters of a pipeline for tests.
seed: 0
compute:
  threads: 2                      # CPU threads
ingest:
  max_rows: 0
sft:
  epochs: 1                       # passes
  learning_rate: 0.001
ppo:
  steps: 3
  kl_coef: 0.05
dpo:
  beta: 0.1
evaluate:
  policies: [sft, ppo, dpo]
  batch_size: 8
report:
  title: a test
resources:
  retry_seconds: 0.2
  lost_seconds: 60
"""

RESOLVE = """
import json, os, pathlib, yaml
from tasks.support.code import write_code
write_code()
pathlib.Path("runs").mkdir(exist_ok=True)
threads = yaml.safe_load(open("params.yaml"))["compute"]["threads"]
device = os.environ.get("DEVICE", "cpu")
pathlib.Path("runs/environment.json").write_text(json.dumps({"device": device, "threads": threads}))
"""


SFT = """\
LEARNING = 1
import json, runpy
from tasks.support.code import stage_code
from tasks.support.runs import git_state
runpy.run_path("work.py", run_name="__main__")
json.dump({"code": stage_code("sft").record(), **git_state()}, open("runs/sft.json", "w"))
"""


@dataclass(frozen=True)
class Project:
    """A workspace on disk and the commands that people give in it.

    Attributes:
        variables: of the environment of each command, such as the address of a Prefect server.
    """

    root: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self, **extra: str) -> dict[str, str]:
        cleaned = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT", "DVC", "PREFLOOP"))
        }
        return {
            **cleaned,
            "PYTHONPATH": str(REPOSITORY),
            "SHELL": str(self.root / "bin/sh"),
            "HF_HUB_OFFLINE": "1",
            "PREFLOOP_TRACKING": "off",
            "GIT_CONFIG_GLOBAL": os.devnull,
            **self.variables,
            **extra,
        }

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", *arguments],
            cwd=self.root, env=self.environment(**extra),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def prefloop(self, *arguments: str, code: int = 0, **extra: str) -> str:
        """Runs a command to its end; the exit code has to be `code`."""
        child = self.start(*arguments, **extra)
        output, _ = child.communicate(timeout=580)
        assert child.returncode == code, f"exit code {child.returncode}, expected {code}\n{output}"
        return output

    def plan(self, *targets: str) -> dict[str, dict]:
        """What `prefloop plan --json` prints, by stage; in this process, which is faster."""
        with contextlib.chdir(self.root), mock.patch.dict(os.environ, PYTHONPATH=str(REPOSITORY)):
            repo = open_repo(self.root)
            refresh(self.root, repo)
            plan = make_plan(repo, targets, interrupted=unfinished(self.root))
        return {stage["stage"]: stage for stage in as_json(plan)}

    def shell_prefloop(self, *arguments: str) -> str:
        """Standard output alone of a command that has to succeed."""
        return self.shell(sys.executable, "-m", "flows.cli.main", *arguments)

    @staticmethod
    def wait_until(check: Callable[[], object], seconds: float = 240):
        return wait_until(check, seconds)

    def shell(self, *command: str, **extra: str) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**extra), capture_output=True, text=True, timeout=580
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def dvc(self, *arguments: str, **extra: str) -> str:
        return self.shell(sys.executable, "-m", "dvc", *arguments, **extra)

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.root / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def ran(self) -> list[str]:
        """Stages whose command ran, in order, and forgets them; `sft 7` resumed after step 7."""
        log = self.root / ".prefloop/ran.log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    def stages_ran(self) -> set[str]:
        return {line.split()[0] for line in self.ran()}

    def processes(self) -> list[psutil.Process]:
        """Every live process that works in this folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.root):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def wait_for_process(self, words: str, seconds: float = 240) -> psutil.Process:
        """Waits until a process whose command line holds `words` works in this folder (no shell)."""

        def search() -> psutil.Process | None:
            for process in self.processes():
                try:
                    if words in " ".join(process.cmdline()) and process.name() != "sh":
                        return process
                except psutil.Error:
                    continue
            return None

        return wait_until(search, seconds)


@pytest.fixture(scope="session")
def project_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template") / "project"
    (root / "data/sources").mkdir(parents=True)
    (root / "data/sources/rows.txt").write_text("a row\n")
    (root / "tasks").mkdir()
    (root / "tasks/sft.py").write_text(SFT)
    (root / "work.py").write_text(textwrap.dedent(WORK).lstrip())
    (root / "bin").mkdir()
    (root / "bin/sh").write_text('#!/bin/sh\n/bin/sh "$@"\nexit $?\n')  # many a shell stays between
    (root / "bin/sh").chmod(0o755)
    (root / "resolve.py").write_text(RESOLVE.lstrip())
    (root / "dvc.yaml").write_text(PIPELINE.lstrip())
    (root / "params.yaml").write_text(PARAMS)
    (root / ".gitignore").write_text(
        "/.prefloop/\n/models/\n/metrics/\n/runs/\n/reports/\n/data/raw/\n__pycache__/\n"
    )
    project = Project(root)
    (root / ".prefloop/prefect").mkdir(parents=True)
    provide_database(root / ".prefloop/prefect")
    project.shell("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n    autostage = false\n")
    project.shell("git", "add", "-A")
    project.shell("git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "a project")
    return root


@pytest.fixture(scope="session")
def finished_template(project_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a bare `dvc repro`."""
    root = tmp_path_factory.mktemp("finished") / "project"
    subprocess.run(["cp", "-a", str(project_template), str(root)], check=True)
    Project(root).dvc("repro")
    Project(root).ran()
    return root


@pytest.fixture
def project(project_template: Path, tmp_path: Path) -> Iterator[Project]:
    """A workspace in which nothing ran yet."""
    yield from _workspace(project_template, tmp_path / "new")


@pytest.fixture
def finished(finished_template: Path, tmp_path: Path) -> Iterator[Project]:
    """A workspace in which everything is up to date."""
    yield from _workspace(finished_template, tmp_path / "finished")


def _workspace(template: Path, folder: Path) -> Iterator[Project]:
    folder.mkdir()
    root = folder / "project"
    subprocess.run(["cp", "-a", str(template), str(root)], check=True)
    made = Project(root)
    yield made
    left = made.processes()
    for process in left:
        process.kill()
    assert not left, f"left running: {left}"
