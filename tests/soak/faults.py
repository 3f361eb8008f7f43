"""What goes wrong, one small function a fault; `FAULTS` lists them.

A fault strikes a live run, says what it did, and may leave something for a person to mend (a disk to make
room on) before the one command that may be needed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from tests.servers.prefect_server import PrefectServer
from tests.soak import clock
from tests.soak.clock import Clock
from tests.soak.proxy import Behaviour, Proxy
from tests.soak.world import World, end, wait_until

Strike = Callable[["Scene"], str]


@dataclass
class Scene:
    """One fault's surroundings.

    Attributes:
        draw: every choice comes from here.
        stage, step: in which training, and after which step, it strikes.
        run: the run that it strikes.
        cuts: the training is cut off, and has to go on from its last checkpoint.
        code: how the run ended, where the fault itself has seen to that.
        away: what is to be awaited before the one command: a server that is started again.
    """

    world: World
    draw: Random
    stage: str
    step: int
    run: subprocess.Popen[bytes]
    cuts: bool = False
    code: int | None = None
    away: list[Callable[[], None]] = field(default_factory=list)


class TooLate(Exception):
    """What was to be struck had ended before."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        name: in the table.
        strike: does it; returns what it did, for people.
        when: "training" (after a step of a training), "any" (at any time of a run), "start" (as it starts).
        needs: "servers", "mount", "clock", "warm", "workers"; where one lacks, this is said.
        mend: what a person does before the one command.
        variables: further environment of the run that it strikes, made for a scene's world.
        drop: an environment variable that the run does not get.
        tracked: the metrics of the process that was struck are all expected in MLflow.
    """

    name: str
    strike: Strike
    when: str = "training"
    needs: frozenset[str] = frozenset()
    mend: Callable[[Scene], None] | None = None
    variables: Callable[[World], Mapping[str, str]] | None = None
    drop: str = ""
    tracked: bool = True


def _kill(scene: Scene, pid: int | None, what: str) -> str:
    if not end(pid):
        raise TooLate(what)
    return f"kill -9 of {what}"


def kill_trainer(scene: Scene) -> str:
    scene.cuts = True
    return _kill(scene, scene.world.trainer(scene.stage), f"the process of {scene.stage}")


def kill_trainer_and_tear(scene: Scene) -> str:
    """As a machine that lost its power leaves it: the newest checkpoint is there, and its end is not."""
    said = kill_trainer(scene)
    scene.world.wait(scene.run)
    folders = sorted(scene.world.state.glob(f"scratch/{scene.stage}/*/checkpoints/checkpoint-*"))
    if not folders:
        return said
    for file in folders[-1].iterdir():
        os.truncate(file, file.stat().st_size // 2)
    scene.cuts = False  # it goes on from the one before, or from the beginning
    return f"{said}, and {folders[-1].name} torn"


def kill_dvc(scene: Scene) -> str:
    scene.cuts = True
    return _kill(scene, scene.world.child(f"stage {scene.stage}"), f"DVC of {scene.stage}")


def kill_coordinator(scene: Scene) -> str:
    scene.cuts = True
    return _kill(scene, scene.run.pid, "the coordinator")


def power_cut(scene: Scene) -> str:
    scene.cuts = True
    scene.world.kill_all()
    return "kill -9 of all processes at once"


def kill_delivery(scene: Scene) -> str:
    if not end(scene.world.process("tasks.deliver")):
        raise TooLate("the delivery")
    return "kill -9 of the delivery to MLflow"


def kill_warm(scene: Scene) -> str:
    return _kill(scene, scene.world.child("warm process"), "the warm process")


def kill_own_server(scene: Scene) -> str:
    return _kill(scene, scene.world.child("Prefect server"), "the run's own Prefect server")


def _restarting(name: str) -> Strike:
    """kill -9 of a server, which whoever looks after it starts again a while later, or only after the run."""

    def strike(scene: Scene) -> str:
        assert scene.world.servers is not None
        service = scene.world.servers.services[name]
        service.kill()
        scene.away.append(scene.world.restore)
        needed = name == "prefect" or (name == "database" and scene.world.workers)  # a run waits for it
        if not needed and scene.draw.random() < 0.3:
            return f"kill -9 of {name}, started again after the run"
        seconds = scene.draw.uniform(0.5, 4.0)

        timer = threading.Timer(seconds, service.start)
        timer.start()
        scene.away.insert(0, timer.join)
        return f"kill -9 of {name}, started again after {seconds:.1f} s"

    return strike


def _network(name: str, kind: str) -> Strike:
    """The network to a server is lost for a while, or for the rest of the run."""

    def strike(scene: Scene) -> str:
        proxy = _proxy(scene, name)
        seconds = scene.draw.choice([0.5, 2.0, 5.0, 0.0])
        proxy.set(Behaviour(kind))
        if not seconds:
            return f"network to {name}: {DONE[kind]}, for the rest of the run"
        timer = threading.Timer(seconds, proxy.set)
        timer.start()
        scene.away.insert(0, timer.join)
        return f"network to {name}: {DONE[kind]}, for {seconds:.1f} s"

    return strike


def _upload(name: str, marker: bytes) -> Strike:
    """Uploads of models end half-way."""

    def strike(scene: Scene) -> str:
        times, after = scene.draw.randint(1, 3), scene.draw.randint(2_000, 200_000)
        _proxy(scene, name).set(Behaviour("truncate", marker, after, times))
        scene.away.insert(0, lambda: _expect_hits(scene, name))
        return f"uploads to {name} cut after {after:,} bytes, {times} times"

    return strike


def swallow_answers(scene: Scene) -> str:
    """MLflow does what it is asked and nobody hears of it: the same is delivered twice."""
    times, what = scene.draw.randint(1, 3), scene.draw.choice(ASKED)
    _proxy(scene, "mlflow").set(Behaviour("swallow", what, times=times))
    scene.away.insert(0, lambda: _expect_hits(scene, "mlflow"))
    return f"delivered twice: answers to {what.decode()} lost, {times} times"


ASKED = (
    b"POST /api/2.0/mlflow/runs/log-batch",
    b"POST /api/2.0/mlflow/runs/create",
    b"POST /api/2.0/mlflow/runs/update",
    b"POST /api/2.0/mlflow/model-versions/create",
    b"POST /api/2.0/mlflow/logged-models",
)
"""Requests that change something, once a run or often."""
DONE = {"refuse": "cut", "stall": "stalled"}


def _proxy(scene: Scene, name: str) -> Proxy:
    assert scene.world.servers is not None
    scene.away.append(scene.world.restore)
    return scene.world.servers.networks[name]


def _expect_hits(scene: Scene, name: str) -> None:
    assert scene.world.servers is not None
    if not scene.world.servers.networks[name].hits:
        raise TooLate("what the proxy should have disturbed")


def two_coordinators(scene: Scene) -> str:
    """A second run of the same workspace beside the first: refused, and the first goes on."""
    code = scene.world.command()
    if code != 6:
        raise AssertionError(f"a second coordinator beside a live one ended with exit code {code}, not 6")
    return "a second coordinator in the same workspace: refused"


def two_at_once(scene: Scene) -> str:
    """Both start at the same moment: one is refused, either of them."""
    second = scene.world.start()
    codes = sorted([scene.world.wait(scene.run), scene.world.wait(second)])
    if codes not in ([0, 6], [0, 0]):  # the slower may come when the other is done
        raise AssertionError(f"two coordinators at once ended with exit codes {codes}")
    scene.code = 0
    return "two coordinators started at once" + (": one refused" if 6 in codes else ": one after the other")


def fill_disk(scene: Scene) -> str:
    scene.world.fill_disk()
    return "the disk is full"


def free_disk(scene: Scene) -> None:
    scene.world.free_disk()


def _jump(seconds: int) -> Strike:
    def strike(scene: Scene) -> str:
        Clock(scene.world.root.parent).set(seconds)
        return f"the clock jumps by {seconds:+,} s"

    return strike


def under_own_clock(world: World) -> Mapping[str, str]:
    """Environment of a run whose time of day can be set."""
    own = Clock(world.root.parent)
    own.set(0)
    return own.variables()


def kill_worker(scene: Scene) -> str:
    """The worker that trains is gone with all it started, as when its machine is lost."""
    pid = scene.world.trainer(scene.stage)
    clones = {worker.clones: worker for worker in scene.world.workers}
    with suppress(psutil.Error):
        folder = Path(psutil.Process(pid).cwd())
        worker = next(worker for place, worker in clones.items() if folder.is_relative_to(place))
        worker.kill()
        scene.world.kill_all(worker.clones)
        scene.away.append(scene.world.restore)
        return f"kill -9 of {worker.name} and all that it ran"
    raise TooLate(f"the training of {scene.stage}")


def deliver_job_twice(scene: Scene) -> str:
    """A second flow run of the same job, as a queue that delivers at least once would have it."""
    prefect = scene.world.servers.services["prefect"] if scene.world.servers is not None else None
    assert isinstance(prefect, PrefectServer)
    runs = prefect.ask("flow_runs/filter", sort="START_TIME_DESC", limit=20)
    found = next((run for run in runs if run["parameters"].get("stage", "").startswith(scene.stage)), None)
    if found is None:
        raise TooLate(f"the job of {scene.stage}")
    place = f"deployments/{found['deployment_id']}/create_flow_run"
    prefect.ask(place, parameters=found["parameters"], state={"type": "SCHEDULED"})
    return f"the job of {scene.stage} delivered to a second worker"


def frozen(scene: Scene) -> str:
    """Every process of the run stands still for a while, as in a virtual machine that is moved."""
    seconds = scene.draw.uniform(2.0, 6.0)
    found = [process.pid for process in scene.world.processes()]
    for pid in found:
        end(pid, signal.SIGSTOP)
    time.sleep(seconds)
    for pid in found:
        end(pid, signal.SIGCONT)
    return f"all processes frozen for {seconds:.1f} s"


SERVERS = frozenset({"servers"})
FAULTS = (
    Fault("trainer killed", kill_trainer),
    Fault("trainer killed, checkpoint torn", kill_trainer_and_tear),
    Fault("DVC killed", kill_dvc),
    Fault("coordinator killed", kill_coordinator),
    Fault("coordinator killed anywhere", kill_coordinator, when="any"),
    Fault("power cut", power_cut),
    Fault("power cut anywhere", power_cut, when="any"),
    Fault("warm process killed", kill_warm, needs=frozenset({"warm"})),
    Fault("run's own Prefect server killed", kill_own_server, drop="PREFECT_API_URL"),
    Fault("Prefect server killed", _restarting("prefect"), needs=SERVERS),
    Fault("MLflow server killed", _restarting("mlflow"), needs=SERVERS),
    Fault("delivery killed", kill_delivery),
    Fault("database killed", _restarting("database"), needs=SERVERS),
    Fault("storage server killed", _restarting("storage"), needs=SERVERS),
    Fault("network to MLflow cut", _network("mlflow", "refuse"), needs=SERVERS),
    Fault("network to MLflow stalled", _network("mlflow", "stall"), needs=SERVERS),
    Fault("network to storage cut", _network("storage", "refuse"), needs=SERVERS),
    Fault("network to storage stalled", _network("storage", "stall"), needs=SERVERS),
    Fault(
        "upload to MLflow truncated", _upload("mlflow", b"PUT /api/2.0/mlflow-artifacts"), "start", SERVERS
    ),
    Fault("upload to storage truncated", _upload("storage", b"PUT /mlflow/"), "start", SERVERS),
    Fault("delivered twice", swallow_answers, when="start", needs=SERVERS),
    Fault("two coordinators", two_coordinators),
    Fault("two coordinators at once", two_at_once, when="start"),
    Fault("disk full", fill_disk, needs=frozenset({"mount"}), mend=free_disk, tracked=False),
    Fault("clock forward", _jump(86_400), needs=frozenset({"clock"}), variables=under_own_clock),
    Fault("clock back", _jump(-3_600), needs=frozenset({"clock"}), variables=under_own_clock),
    Fault("frozen", frozen),
    Fault("worker killed", kill_worker, needs=frozenset({"workers"}), tracked=False),
    Fault("job delivered twice", deliver_job_twice, needs=frozenset({"workers"})),
)
"""Every kind. A soak takes them in turn, in an order that its seed draws."""


def available(world: World) -> frozenset[str]:
    """What a world has of that which faults need."""
    found = {"servers"} if world.servers is not None else set()
    if world.mounted:
        found.add("mount")
    if clock.available():
        found.add("clock")
    if world.pipeline.name == "real":
        found.add("warm")
    if world.workers:
        found.add("workers")
    return frozenset(found)


def moment(scene: Scene, fault: Fault, whole_seconds: float) -> str:
    """Waits for the moment to strike; says which it was.

    Raises:
        TooLate: the run ended before.
    """
    world, run = scene.world, scene.run
    if fault.when == "start":
        return "as it starts"
    if fault.when == "any":
        seconds = scene.draw.uniform(0.0, 0.9) * whole_seconds
        wait_until(lambda: run.poll() is not None, seconds)
        if run.poll() is not None:
            raise TooLate("the run")
        return f"{seconds:.1f} s after its start"

    def ready() -> bool:
        trains = world.step(scene.stage) >= scene.step and world.trainer(scene.stage) is not None
        return trains or run.poll() is not None

    if not wait_until(ready, 300) or run.poll() is not None:
        raise TooLate(f"step {scene.step} of {scene.stage}")
    return f"{scene.stage}, step {world.step(scene.stage)}"
