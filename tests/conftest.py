"""What every test stands on: no network, no telemetry, one thread, the repository's own files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before any test imports a library that reads them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    DO_NOT_TRACK="true",
    MLFLOW_DISABLE_TELEMETRY="true",
    DVC_NO_ANALYTICS="1",
    GX_ANALYTICS_ENABLED="false",
    HF_HUB_DISABLE_TELEMETRY="1",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# `python` in a stage's command is this interpreter, as in an activated environment.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of this repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is absent: {folder}")
    return folder


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that was migrated once, since that takes seconds."""
    from prefloop.config.tracking import TrackingConfig
    from tasks.support.mlflow_store import connect

    folder = tmp_path_factory.mktemp("store")
    before = Path.cwd()
    os.chdir(folder)
    try:
        connect(TrackingConfig())
    finally:
        os.chdir(before)
    return folder / ".prefloop" / "mlflow" / "mlflow.db"


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for runs of which no test asks how they start their own."""
    from tests.own_prefect import OwnPrefect

    with OwnPrefect(tmp_path_factory.mktemp("own-prefect")) as server:
        yield server.api


@pytest.fixture
def stage_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where a stage that runs in this process is recorded nowhere."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_PIPELINE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFLOOP_TRACKING", "off")
    monkeypatch.setattr(sys, "argv", ["stage"])
    return tmp_path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests first: who is done early finds short ones to take over. A shared long run before all others.

    Left to the end, the shared run would be waited for by everyone, or made twice. Tests that start several
    servers and workers are left out of a run of the whole suite: `make test-servers`, or name their file.
    """
    whole = {Path(word).resolve() for word in config.args} <= {ROOT, ROOT / "tests"}
    if whole and "servers" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("servers")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("servers")]

    def place(item: pytest.Item) -> tuple[bool, bool]:
        return item.path.parent.name != "pipeline", item.get_closest_marker("slow") is None

    items.sort(key=place)
