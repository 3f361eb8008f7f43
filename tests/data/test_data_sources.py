"""Sources beside files: the hub, and what is said without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefloop.config.ingest import HubConfig
from prefloop.data.sources import from_hub
from prefloop.errors import DataError

HUB = HubConfig(name="some/pairs", format="trl", rows=2)


def test_without_a_network_the_remedy_is_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="prefloop data import FORMAT"):
        from_hub(HUB, tmp_path)
    assert not (tmp_path / "hub").exists()


def test_hub_rows_are_streamed_converted_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> Any:
        asked.append((names, options))
        return iter(
            [{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": 3, "chosen": "a"}, {"prompt": "c"}]
        )

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = from_hub(HUB, tmp_path)
    assert asked == [(("some/pairs", None), {"split": "train", "streaming": True})]
    good, broken = source.rows("preferences")
    assert (good["chosen"], good["source"], good["line"]) == ("a", "some/pairs", 1)
    assert "rejected is missing" in broken["invalid"]
    assert list(source.rows("prompts")) == []


def test_a_hub_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*names: Any, **options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"some/pairs .train. could not be read from the hub: no route to host"
    ):
        from_hub(HUB, tmp_path)
