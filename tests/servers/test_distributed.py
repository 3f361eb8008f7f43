"""The real DAG at a tiny size over three workers in clones of their own: the bytes of a run in one place."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from flows.planning.planner import open_repo
from flows.workers.code import publish_code
from flows.workers.data import produced_inputs, push
from flows.workers.exchange import open_exchange
from tasks.support.workspace import slug
from tests.pipeline.conftest import TINY, Workspace, clone_of
from tests.servers.bucket_server import BucketServer
from tests.servers.conftest import StartWorker
from tests.servers.mlflow_server import MlflowServer
from tests.servers.prefect_server import PrefectServer
from tests.servers.service import end_all
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.servers]

KEPT = ("models/", "data/", "metrics/", "plots/", "reports/looks/")
"""Outputs that follow from the inputs alone."""
SIZES = {**TINY, "sft.steps": 120, "dpo.steps": 2400, "compute.checkpoint_seconds": 0.5}
"""Enough steps that SFT can be lost in mid-stage, and that DPO still trains when PPO begins."""
SETTINGS = [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Workspace:
    """A workspace after an ordinary run in one place."""
    made = Workspace(clone_of(repository, tmp_path_factory.mktemp("one") / "prefloop"))
    begun = time.monotonic()
    made.run(*SETTINGS)
    made.seconds = time.monotonic() - begun
    return made


def outputs(workspace: Workspace) -> dict[str, str]:
    """Path -> hash, as dvc.lock has it."""
    lock = yaml.safe_load((workspace.root / "dvc.lock").read_text())
    found = {out["path"]: out["md5"] for entry in lock["stages"].values() for out in entry["outs"]}
    return {path: name for path, name in found.items() if path.startswith(KEPT)}


def weights(storage: BucketServer) -> list[tuple[str, str]]:
    """Requests that moved an object of the DVC remote."""
    return [
        (verb, key)
        for verb, key in storage.requests()
        if verb in ("GET", "CREATE", "PUT") and "/data/files/" in key and not key.endswith(".dir")
    ]


def overhead(workspace: Workspace, said: str) -> tuple[float, int]:
    """(seconds, stages): what the stages that workers ran took beyond the work itself."""
    total, count = 0.0, 0
    for stage, seconds in re.findall(r"^(\S+)  ran in (\d+) s$", said, re.MULTILINE):
        path = workspace.root / "runs" / f"{slug(stage)}.json"
        if f"{stage}  on pool" in said and path.exists():
            total += float(seconds) - float(json.loads(path.read_text())["wall_seconds"])
            count += 1
    return total, count


def test_three_workers_make_what_one_place_makes_and_a_second_run_moves_no_weight(
    one: Workspace,
    prefect_server: PrefectServer,
    mlflow_server: MlflowServer,
    storage: BucketServer,
    start_worker: StartWorker,
    repository: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: extra `s3`")
    storage.make("work")
    shared = {
        **storage.client_variables(), **mlflow_server.client_variables(), "PREFLOOP_REMOTE": "s3://work/prefloop",
    }  # fmt: skip
    workers = [start_worker("pool", f"worker-{number}", **shared) for number in range(3)]
    many = Workspace(clone_of(repository, tmp_path / "many"), {**shared, **prefect_server.client_variables()})
    begun = time.monotonic()
    said = many.run("--on", "pool", *SETTINGS)
    distributed = time.monotonic() - begun

    assert outputs(many) == outputs(one)
    assert len([path for path in outputs(one) if path.startswith("models/")]) == 6
    assert not list(many.root.glob("models/**/*.safetensors")), "the coordinator has no weights"
    for path in one.root.glob("models/*/*.safetensors"):
        name = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        assert not (many.root / f".dvc/cache/files/md5/{name[:2]}/{name[2:]}").exists(), f"it fetched {path}"
    ran = {stage: worker for worker in workers for stage in worker.ran()}
    times = {stage: worker.ran()[stage] for stage, worker in ran.items()}
    ppo, dpo = times["ppo@ppo"], times["dpo@dpo"]
    assert ran["ppo@ppo"] is not ran["dpo@dpo"]
    assert max(ppo["start"], dpo["start"]) <= min(ppo["end"], dpo["end"]), "both at once"
    assert {"base", "sft", "reward"} <= set(ran)
    assert "promote" in said
    for secret in (storage.secret, storage.key):
        assert secret not in said + "".join(worker.log.read_text() for worker in workers)

    assert told_mlflow(mlflow_server, many) >= set(ran)

    storage.stop()
    storage.start()
    again = many.run("--on", "pool")
    assert "nothing changed" in again
    assert weights(storage) == []
    seconds, count = overhead(many, said)
    with capsys.disabled():
        print(
            f"\n{count} stages on 3 workers: {distributed:.0f} s, in one place {one.seconds:.0f} s; overhead "
            f"of workers and exchange {seconds:.0f} s in all, {seconds / max(count, 1):.1f} s a stage"
        )


def told_mlflow(server: MlflowServer, workspace: Workspace) -> set[str]:
    """Stages that have a run which ended well below the pipeline's, with the key of their record."""
    from mlflow import MlflowClient

    client = MlflowClient(server.url, server.url)
    params = yaml.safe_load((workspace.root / "params.yaml").read_text())
    experiment = client.get_experiment_by_name(params["tracking"]["experiment"])
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    pipelines = {run.info.run_id for run in runs if run.data.tags["mlflow.runName"] == "pipeline"}
    found = set()
    for run in runs:
        tags = run.data.tags
        if tags.get("mlflow.parentRunId") in pipelines and run.info.status == "FINISHED":
            record = workspace.root / "runs" / f"{slug(tags['prefloop.stage'])}.json"
            if json.loads(record.read_text())["run"] == tags["prefloop.run"]:
                found.add(tags["prefloop.stage"])
    return found


def start_stage(place: Path, variables: dict[str, str], job: dict[str, str]) -> subprocess.Popen[str]:
    """One stage as a worker's process runs it, in a folder that stands for its machine."""
    code = "import json, sys; from flows.workers import stage; stage.remote_stage(**json.loads(sys.argv[1]))"
    own = {"PREFLOOP_WORKER_FOLDER": str(place / "clones"), "PREFECT_HOME": str(place / "prefect")}
    place.mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(job)], cwd=place, text=True, start_new_session=True,
        env={**variables, **own},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_stage_that_was_lost_with_its_machine_goes_on_elsewhere_to_the_same_bytes(
    one: Workspace,
    prefect_server: PrefectServer,
    storage: BucketServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed: extra `s3`")
    storage.make("lost")
    shared = {
        **storage.client_variables(),
        "PREFLOOP_REMOTE": "s3://lost/prefloop",
        "PREFLOOP_TRACKING": "off",
    }
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    exchange = open_exchange(one.root)
    repo = open_repo(one.root)
    push(repo, produced_inputs(repo, "sft"))
    lock = yaml.safe_load((one.root / "dvc.lock").read_text())
    (made,) = (out["md5"] for out in lock["stages"]["sft"]["outs"] if out["path"] == "models/sft")
    curve = (one.root / "plots/sft.csv").read_bytes()
    del lock["stages"]["sft"]
    commit = publish_code(one.root, exchange.storage)
    job = {"stage": "sft", "commit": commit, "exchange": exchange.place, "pipeline": "run-1"}
    job["lock"] = yaml.safe_dump(lock)
    variables = {**prefect_server.variables(), **shared, **prefect_server.client_variables()}

    first = start_stage(tmp_path / "first", variables, job)
    try:
        wait_until(lambda: manifests(storage) or first.poll() is not None, 240)
        assert first.poll() is None, first.communicate()[0]
    finally:
        family = psutil.Process(first.pid).children(recursive=True) if first.poll() is None else []
        first.kill()
        end_all(family, signal.SIGKILL)
        first.communicate()
    assert manifests(storage), "what it had shared outlives it"

    second = start_stage(tmp_path / "second", variables, job)
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert "took over a checkpoint that another worker left" in said
    (clone,) = (tmp_path / "second/clones").glob("*/sft")
    assert json.loads((clone / "runs/sft.json").read_text())["resumed_from_step"] > 0
    entry = yaml.safe_load((clone / "dvc.lock").read_text())["stages"]["sft"]
    assert {out["path"]: out["md5"] for out in entry["outs"]}["models/sft"] == made
    assert (clone / "plots/sft.csv").read_bytes() == curve
    assert storage.keys("lost", "prefloop/checkpoints") == []


def manifests(storage: BucketServer) -> list[str]:
    return [key for key in storage.keys("lost", "prefloop/checkpoints") if key.endswith("manifest.json")]
