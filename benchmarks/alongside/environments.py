"""Virtual environments for peers, made on first use below .prefloop/benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".prefloop" / "benchmarks"
PEERS = ROOT / "benchmarks" / "peers"


def environment(package: str, version: str) -> Path:
    """The interpreter of the environment that holds a peer; made if it is not there.

    It is a venv of its own with one line more: a .pth file that names this interpreter's site-packages. So
    pip installs the peer and what this environment lacks, and torch, transformers and tokenizers are the very
    ones that prefloop runs on: a difference between the two sides is never one of theirs.
    """
    folder = FOLDER / f"{package}-{version}"
    python = folder / "bin" / "python"
    done = folder / "complete"
    if done.exists():
        return python
    print(f"making {folder.relative_to(ROOT)} (once)", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(python), "-c", asked], check=True, capture_output=True, text=True)
    own = Path(site.stdout.strip())
    (own / "running.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, f"{package}=={version}"], check=True)
    done.touch()
    return python


def ask(
    python: Path,
    script: str,
    jobs: list[dict[str, Any]],
    scratch: Path,
    *,
    threads: int = 1,
    **variables: str,
) -> dict[str, Any]:
    """Runs a script of benchmarks/peers on jobs; returns its versions and one answer a job.

    Neither the working folder nor PYTHONPATH is on its path: it cannot import prefloop.

    Args:
        threads: that it computes with. variables: of its environment, besides.

    Raises:
        RuntimeError: the script failed as a whole.
    """
    command = [str(python), "-E", "-s", str(PEERS / f"{script}.py")]
    return answers(command, script, jobs, scratch, scratch, threads, variables)


def answers(
    command: list[str],
    name: str,
    jobs: list[dict[str, Any]],
    scratch: Path,
    folder: Path,
    threads: int,
    variables: Mapping[str, str],
) -> dict[str, Any]:
    """What a process in `folder` writes of jobs; its arguments are the two files, for jobs and answers.

    Raises:
        RuntimeError: it failed as a whole.
    """
    source, target = scratch / f"{name}.jobs.json", scratch / f"{name}.answers.json"
    source.write_text(json.dumps(jobs), encoding="utf-8")
    target.unlink(missing_ok=True)
    settings = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(threads),
        **variables,
    }
    whole = [*command, str(source), str(target)]
    with (scratch / f"{name}.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(whole, cwd=folder, env=settings, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode or not target.exists():
        tail = (scratch / f"{name}.log").read_text(encoding="utf-8")[-2000:]
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{tail}")
    found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
    return found
