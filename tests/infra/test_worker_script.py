"""infra/worker.sh and the Slurm job: asked to end, runs end first, with a checkpoint, then the worker.

In Prefect's place stands a program that starts one child as its worker starts flow runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.conftest import INFRA, REPOSITORY
from tests.waiting import wait_until

PREFECT = """#!{python}
import os, signal, subprocess, sys, time

def note(line):
    with open("{log}", "a") as log:
        log.write(line + "\\n")

def ended(name):
    def end(*_):
        time.sleep(0.3)
        note(name + " ended")
        os._exit(0)
    return end

if sys.argv[1:] == ["run"]:
    signal.signal(signal.SIGTERM, ended("run"))
    note("run began")
else:
    signal.signal(signal.SIGTERM, ended("worker"))
    note(" ".join(sys.argv[1:]))
    run = subprocess.Popen([sys.argv[0], "run"])
    run.wait()
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("script", "arguments", "name"),
    [("worker.sh", ["gpu", "mine"], "mine"), ("slurm/worker.sbatch", [], "slurm-17")],
)
def test_runs_end_before_their_worker(script, arguments, name, tmp_path):
    log, prefect = tmp_path / "log", tmp_path / "prefect"
    prefect.write_text(PREFECT.format(python=sys.executable, log=log))
    prefect.chmod(0o755)
    secret = tmp_path / "auth"
    secret.write_text("user:word")
    variables = {
        "PATH": os.environ["PATH"], "USER": "tester", "PYTHON": str(prefect), "SLURM_JOB_ID": "17",
        "PREFLOOP_CLONE": str(REPOSITORY), "PREFLOOP_REMOTE": "/exchange",
        "PREFECT_API_URL": "http://127.0.0.1:1/api", "PREFECT_API_AUTH_STRING_FILE": str(secret),
    }  # fmt: skip
    job = subprocess.Popen(["bash", str(INFRA / script), *arguments], env=variables, cwd=tmp_path)
    wait_until(lambda: log.exists() and "run began" in log.read_text(), 120)
    job.send_signal(signal.SIGTERM)  # to the script alone, as Slurm and containers do it
    assert job.wait(120) == 0
    assert log.read_text().splitlines() == [
        f"-m prefect worker start --pool gpu --type process --limit 1 --name {name}",
        "run began",
        "run ended",
        "worker ended",
    ]


def test_what_killed_attempts_left_is_delivered_first(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/log"\n')
    python.chmod(0o755)
    spool = tmp_path / "clones/0123456789abcdef/sft/.prefloop/spool"
    spool.mkdir(parents=True)
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHON": str(python),
        "PREFLOOP_WORKER_FOLDER": f"{tmp_path}/clones",
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
    }
    command = ["bash", str(INFRA / "worker.sh"), "gpu"]
    for _ in range(2):
        subprocess.run(command, env=variables, check=True)
        (spool / "20250101T000000-sft-aaaaaa.jsonl").touch()
    modules = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert modules == ["prefect", "flows.workers.deliveries", "prefect"]


def test_a_worker_that_ends_by_itself_tells_how(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(INFRA / "worker.sh"), "gpu"],
        env={"PATH": os.environ["PATH"], "PYTHON": str(python), "PREFECT_API_URL": "http://127.0.0.1:1/api"},
        check=False,
    )
    assert done.returncode == 7, "what restarts it sees that it failed"


def test_a_job_without_a_shared_folder_is_refused(tmp_path):
    variables = {"PATH": os.environ["PATH"], "PREFECT_API_URL": "http://127.0.0.1:1/api", "USER": "tester"}
    command = ["bash", str(INFRA / "slurm/worker.sbatch")]
    done = subprocess.run(command, env=variables, cwd=Path(tmp_path), capture_output=True, check=False)
    assert done.returncode
    assert b"PREFLOOP_REMOTE: a bucket, or a folder that the coordinator reaches" in done.stderr


def test_a_worker_in_a_new_terminal_says_what_it_lacks_or_finds_it(tmp_path):
    worker = ["bash", str(INFRA / "worker.sh"), "workspace"]
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def said(code, **more):
        done = subprocess.run(
            worker, env={**variables, **more}, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done.stderr + done.stdout

    assert "worker.sh: PREFECT_API_URL is not set: export PREFECT_API_URL=http" in said(2)
    url = "http://127.0.0.1:1/api"
    assert f"PREFLOOP_WORKSPACE names no clone, and {tmp_path} is none" in said(2, PREFECT_API_URL=url)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$PREFLOOP_WORKSPACE $*"\n')
    python.chmod(0o755)
    (tmp_path / "dvc.yaml").touch()
    assert f"{tmp_path} -m prefect worker start --pool workspace" in said(
        0, PREFECT_API_URL=url, PYTHON=str(python)
    )


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not here")
def test_systemd_takes_the_units(tmp_path):
    for unit in (INFRA / "systemd").glob("*.service"):
        text = unit.read_text().replace("%h/prefloop/.venv/bin/prefect", sys.executable)
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", *map(str, tmp_path.glob("*.service"))],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
