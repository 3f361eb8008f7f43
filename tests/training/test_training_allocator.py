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
import hashlib, pathlib, sys
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


HEAP = """
import json, pathlib, re, resource, sys
limit = int(sys.argv[1])
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
from prefloop.training.allocator import keep_freed_memory
def facts():
    status = pathlib.Path("/proc/self/status").read_text()
    size, resident = (int(re.search(name + r":\\s+(\\d+)", status)[1]) * 1024 for name in ("VmSize", "VmRSS"))
    areas = re.findall(r"^[0-9a-f]+-[0-9a-f]+ rw-p .*?^VmFlags: ([a-z ]+)$",
                       pathlib.Path("/proc/self/smaps").read_text(), re.M | re.S)
    return [size, resident, any("hg" in flags.split() for flags in areas)]
first = facts()
kept = keep_freed_memory()
then = facts()
keep_freed_memory()
print(json.dumps([kept, first, then, facts()]))
"""


def heap(limit: int = 0, **variables: str) -> tuple[bool, int, int, bool, int]:
    """Whether memory is kept; bytes of addresses and of memory that it takes; whether its pages are to be
    huge; addresses of a second call."""
    chosen = ("MALLOC_", "THP_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
    done = subprocess.run(
        [sys.executable, "-c", HEAP, str(limit)],
        env={**plain, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, first, then, again = json.loads(done.stdout)
    return kept, then[0] - first[0], then[1] - first[1], then[2], again[0] - then[0]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
def test_the_heap_has_addresses_of_huge_pages_for_what_the_machine_holds() -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2":
        pytest.skip("addresses cost memory here")
    kept, addresses, memory, huge, further = heap()
    assert kept
    holds = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert holds - 2**30 <= addresses <= holds + 2**25
    assert memory < 2**24, "none is touched"
    assert further < 2**24, "once is enough"
    if Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert huge


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone")
@pytest.mark.parametrize(
    ("limit", "variables"), [(2**36, {}), (0, {"THP_MEM_ALLOC_ENABLE": "1"})], ids=["limited", "chosen"]
)
def test_a_limit_of_addresses_or_a_choice_leaves_the_heap_as_long_as_it_is(
    limit: int, variables: dict[str, str]
) -> None:
    kept, addresses, _, _, _ = heap(limit, **variables)
    assert kept
    assert addresses < 2**25


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
