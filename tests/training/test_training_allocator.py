"""What a process sets before it computes costs or saves time, and changes no bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.training.allocator import keep_freed_memory

SCRIPT = """
import json, resource, sys, time
import torch
from prefloop.training.allocator import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
def work():
    for _ in range(20):
        a, b = torch.ones(6_000_000), torch.ones(5_000_000)  # 24 and 20 MB
        del a, b
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""

TRAINED = """
import tasks, hashlib, pathlib, sys
from prefloop.config.compute import ComputeConfig
from prefloop.training.environment import apply, resolve
from tests.training.test_training_unset_memory import weights
apply(resolve(ComputeConfig(device="cpu")), threads=2)
digest = hashlib.sha256()
for name, value in sorted(weights(pathlib.Path(sys.argv[1]), sys.argv[2]).items()):
    digest.update(name.encode() + value.numpy().tobytes())
print(digest.hexdigest())
"""
OTHERWISE = {"MALLOC_ARENA_TEST": "8", "THP_MEM_ALLOC_ENABLE": "0", "GOMP_SPINCOUNT": "0"}
"""Freed memory goes back, in small pages, and threads sleep at once."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_ends_with_the_same_bytes_either_way(
    tmp_path: Path, repository: Path, precision: str
) -> None:
    def trained(name: str, **environment: str) -> str:
        chosen = ("MALLOC_", "GOMP_")
        plain = {key: value for key, value in os.environ.items() if not key.startswith(chosen)}
        done = subprocess.run(
            [sys.executable, "-c", TRAINED, str(tmp_path / name), precision],
            env={**plain, **environment},
            cwd=repository,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split()[-1]

    assert trained("stages") == trained("otherwise", **OTHERWISE)


def faults(mode: str, **variables: str) -> tuple[bool, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode],
        env={**plain, "THP_MEM_ALLOC_ENABLE": "0", **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = json.loads(done.stdout)
    return kept, count


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_what_is_freed_is_not_fetched_anew() -> None:
    _, before = faults("leave", MALLOC_MMAP_THRESHOLD_="65536")  # what glibc does until it has adapted
    kept, after = faults("keep")
    assert kept
    assert before > 100_000  # 20 times 44 MB in pages of 4 KiB
    assert after < before / 10


def test_whoever_chose_otherwise_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    assert not keep_freed_memory()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
