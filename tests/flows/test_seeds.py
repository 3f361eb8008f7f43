"""Intervals over seeds."""

from __future__ import annotations

import pytest

from flows.seeds import interval, over_seeds, table


def evaluation(gold: float, win: float) -> dict:
    return {"policies": {"ppo": {"gold": {"mean": gold, "ci95": [0, 9]}, "win_rate_vs_sft": {"mean": win}}}}


def test_the_t_interval_of_three_values() -> None:
    """1, 2, 3: mean 2, sd 1, half-width 4.303 / sqrt(3) = 2.4843."""
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["sd"] == 1.0
    assert found["ci95"] == pytest.approx([-0.48434, 4.48434], abs=1e-4)


def test_one_value_has_no_interval() -> None:
    assert interval([0.5]) == {"mean": 0.5, "sd": None, "ci95": None}


def test_figures_that_every_seed_has_are_summed_up() -> None:
    summary = over_seeds({1: evaluation(1.0, 0.6), 0: evaluation(2.0, 0.8)})
    assert summary["seeds"] == [0, 1]
    assert summary["policies"]["ppo"]["gold"]["values"] == [2.0, 1.0]
    assert summary["policies"]["ppo"]["win_rate_vs_sft"]["mean"] == pytest.approx(0.7)
    assert "length" not in summary["policies"]["ppo"]
    assert table(summary)[1].startswith("ppo     1.50 [-4.85, 7.85]")


@pytest.mark.slow
def test_each_seed_runs_in_a_clone_and_shares_the_cache(finished, prefect_api) -> None:
    finished.edit("params.yaml", "title: a test", "title: uncommitted")
    output = finished.prefloop("run", "--seeds", "2", PREFECT_API_URL=prefect_api)
    assert "intervals over 2 seeds; figures: metrics/seeds.json" in output
    clones = [finished.root / f".prefloop/seeds/seed-{seed}" for seed in (0, 1)]
    assert [(clone / "params.yaml").read_text().splitlines()[1] for clone in clones] == ["seed: 0", "seed: 1"]
    assert all("title: uncommitted" in (clone / "params.yaml").read_text() for clone in clones)
    own = (finished.root / "models/sft/weights").read_bytes()
    assert (clones[0] / "models/sft/weights").read_bytes() == own
    assert not (clones[0] / ".prefloop/ran.log").read_text().count("sft")
    assert "seed: 0" in (finished.root / "params.yaml").read_text()
