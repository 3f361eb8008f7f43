"""What a stage cost: processor time of children, memory of its own, energy as chips count it, and sums."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.support.costs import total
from tasks.support.energy import EnergyMeter, Packages
from tasks.support.gpus import Gpus
from tasks.support.pipeline import Pipeline, records_folder
from tasks.support.runs import Clock

REPOSITORY = Path(__file__).parents[2]
MIB = 1 << 20


def run(script: str) -> dict[str, float]:
    """What a process prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


def test_processor_time_counts_that_of_finished_children():
    script = f"""
import json, subprocess, sys, time
from tasks.support.runs import Clock
clock = Clock()
subprocess.run([sys.executable, "-c", {BURN.format(seconds=1.5)!r}], check=True)
child = clock.cost()
begun = time.process_time()
while time.process_time() < begun + 0.5: pass
print(json.dumps({{"child": child["cpu_seconds"], "both": clock.cost()["cpu_seconds"]}}))
"""
    found = run(script)
    assert found["child"] == pytest.approx(1.5, abs=0.2)
    assert found["both"] - found["child"] == pytest.approx(0.5, abs=0.1)


FORK = f"""
import json, os, sys
from tasks.support.runs import Clock
warm = bytearray(os.urandom(300 * {MIB}))
if not os.fork():
    clock = Clock()
    before = clock.cost()["peak_rss_mib"]
    own = b"x" * (60 * {MIB})
    after = clock.cost()["peak_rss_mib"]
    for page in range(0, 100 * {MIB}, 4096):
        warm[page] = 1
    copied = clock.cost()["peak_rss_mib"]
    print(json.dumps({{"before": before, "after": after, "copied": copied}}), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells shared memory apart")
def test_a_forks_memory_is_its_own_and_what_it_wrote_to_since():
    found = run(FORK)
    assert found["before"] < 40  # nothing of the 300 that it was forked with
    assert found["after"] - found["before"] == pytest.approx(60, abs=4)
    assert found["copied"] - found["after"] == pytest.approx(100, abs=8)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere getrusage has to do")
def test_a_started_process_has_no_peak_of_the_one_that_started_it():
    ballast = bytearray(b"x" * (200 * MIB))
    found = run(
        "import json, resource\n"
        "from tasks.support.memory import peak_rss_bytes\n"
        "print(json.dumps({'peak': peak_rss_bytes()}))"
    )
    assert found["peak"] < 100 * MIB < len(ballast)


def zone(folder: Path, number: int, name: str, microjoules: int, top: int = 1_000_000) -> Path:
    made = folder / f"intel-rapl:{number}"
    made.mkdir(parents=True, exist_ok=True)
    (made / "name").write_text(f"{name}\n")
    (made / "energy_uj").write_text(f"{microjoules}\n")
    (made / "max_energy_range_uj").write_text(f"{top}\n")
    return made


def test_processors_energy_is_summed_over_packages_and_goes_on_when_a_counter_starts_over(tmp_path):
    zone(tmp_path, 0, "package-0", 100_000)
    zone(tmp_path, 1, "package-1", 900_000)
    zone(tmp_path, 2, "psys", 5)  # the whole machine: it has the packages in it
    packages = Packages(tmp_path)
    zone(tmp_path, 0, "package-0", 400_000)
    zone(tmp_path, 1, "package-1", 200_000)
    zone(tmp_path, 2, "psys", 900_000)
    assert packages.joules() == pytest.approx(0.3 + 0.3)
    zone(tmp_path, 0, "package-0", 500_000)
    assert packages.joules() == pytest.approx(0.7)


def test_an_energy_that_cannot_be_read_is_not_guessed(tmp_path):
    zone(tmp_path, 0, "package-0", 100_000)
    (zone(tmp_path, 1, "package-1", 0) / "energy_uj").unlink()
    assert Packages(tmp_path).joules() is None
    assert Packages(tmp_path / "nowhere").joules() is None
    clock = Clock(energy=EnergyMeter(gpus=dict, powercap=tmp_path / "nowhere"))
    cost = clock.cost(Gpus(2, ("GPU-a", "GPU-b"), 3 * MIB))
    assert not {"cpu_energy_joules", "gpu_energy_joules"} & cost.keys()
    assert cost["gpu_seconds"] == pytest.approx(2 * cost["wall_seconds"], abs=0.002)
    assert cost["peak_gpu_mib"] == 3


def test_gpus_energy_is_that_of_the_gpus_used(tmp_path):
    counters = {"GPU-a": 10.0, "GPU-b": 1000.0, "GPU-c": 5.0}
    meter = EnergyMeter(gpus=lambda: dict(counters), powercap=tmp_path)
    counters |= {"GPU-a": 17.0, "GPU-b": 1003.0, "GPU-c": 500.0}
    assert meter.gpu_joules(["GPU-a", "GPU-b"]) == 10.0
    assert meter.gpu_joules(["GPU-a", "GPU-without-a-counter"]) is None
    assert meter.gpu_joules([]) is None


def test_sums_take_the_largest_peak_and_leave_out_an_energy_of_a_part():
    costs = [
        {"wall_seconds": 2.0, "cpu_seconds": 3.0, "peak_rss_mib": 700.0, "cpu_energy_joules": 9.0},
        {"wall_seconds": 1.0, "cpu_seconds": 0.5, "peak_rss_mib": 900.0, "gpu_seconds": 1.0},
        {"wall_seconds": 1.0, "gpu_seconds": 4.0, "gpu_energy_joules": 50.0},
    ]
    assert total(costs) == {
        "wall_seconds": 4.0, "cpu_seconds": 3.5, "gpu_seconds": 5.0, "peak_rss_mib": 900.0,
    }  # fmt: skip
    assert total(costs[:1])["cpu_energy_joules"] == 9.0
    assert total(costs[2:])["gpu_energy_joules"] == 50.0
    assert total([]) == {}


def test_a_pipeline_run_has_the_cost_of_the_stages_that_ran_in_it(stage_folder):
    (stage_folder / "params.yaml").write_text("seed: 0\n")
    (stage_folder / "runs").mkdir()
    for stage, pipeline, seconds in (("sft", "run-1", 2.0), ("ppo", "run-1", 3.0), ("dpo", "run-0", 50.0)):
        record = {"stage": stage, "run": f"r-{stage}", "key": "k", "pipeline": pipeline}
        record |= {"wall_seconds": seconds, "cpu_seconds": 2 * seconds, "peak_rss_mib": 100 * seconds}
        (stage_folder / f"runs/{stage}.json").write_text(json.dumps(record))
    pipeline = Pipeline("run-1")
    pipeline.begin()
    pipeline.finish()
    cost = {"wall_seconds": 5.0, "cpu_seconds": 10.0, "peak_rss_mib": 300.0}
    assert json.loads((records_folder() / "run-1.json").read_text())["cost"] == cost
    spool = (stage_folder / ".prefloop/spool/run-1.jsonl").read_text()
    told = [json.loads(line)["values"] for line in spool.splitlines() if '"cost/' in line]
    assert told == [{f"cost/{name}": value for name, value in cost.items()}]
