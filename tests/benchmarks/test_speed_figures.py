"""The figures of benchmarks/speed: medians and spread, what counts as equal, what is missed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.figures_file import write_figures
from benchmarks.peers.clock import Clock, forget_peak, peak, resident
from benchmarks.timing.figures import Result, Spread, Timed, loss_difference
from benchmarks.timing.generation import agree, apart
from benchmarks.timing.table import COLUMNS, as_json, table

LOSSES = [0.7, 0.6, 0.5, 0.4]


def recording(seconds: list[float], losses: list[float] | None = None, peak: float = 100.0) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "busy": [2 * x for x in seconds],
        "losses": LOSSES if losses is None else losses,
        "sampled": [],
        "memory": {"peak": peak, "before": 40.0, "growth": peak - 40.0},
    }


def result(ours: float = 1.0, peer: float = 5.0, losses: list[float] | None = None, **others: Any) -> Result:
    own = Timed([recording([9.0, ours, ours])], [10.0])
    tuned = Timed([recording([9.0, peer, peer], losses, 150.0)], [20.0])
    row = {"method": "sft", "size": "7m", "lengths": "short", "precision": "fp32", "steps": 4, **others}
    return Result(**row, ours=own, tuned=tuned)


def test_a_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 2.0, 3.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert math.isnan(Spread.of([]).median)


def test_steps_of_all_rounds_count_after_the_warm_up() -> None:
    timed = Timed([recording([100.0, 1.0, 2.0]), recording([100.0, 3.0, 10.0])])
    assert timed.spread().median == 2.5
    assert timed.spread("busy").median == 5.0
    assert timed.memory == 100.0
    assert timed.growth == 60.0


def test_a_row_says_what_it_reaches() -> None:
    met = result()
    assert (met.fails, met.missed, met.verdict) == ("", [], "meets its targets")
    assert met.ratio(met.tuned) == 5.0
    assert result(peer=3.9).verdict == "below 4x"
    assert result(peer=1.9, size="30m").missed == ["below 2x", "below 50% of GEMM"]
    assert "more memory than TRL" in result(ours=1.0).missed + _heavier().missed


def _heavier() -> Result:
    found = result()
    found.ours.recordings[0]["memory"]["peak"] = 151.0
    return found


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("change", [3e-4, -3e-4, math.nan])
def test_a_row_fails_when_one_loss_differs(place: int, change: float) -> None:
    losses = list(LOSSES)
    losses[place] *= 1 + change
    assert result(losses=losses).fails.startswith("losses differ")


def test_a_loss_within_rounding_is_equal_and_bf16_has_a_tolerance_of_its_own() -> None:
    near = [x * (1 + 9e-5) for x in LOSSES]
    far = [x * (1 + 9e-3) for x in LOSSES]
    assert not result(losses=near).fails
    assert result(losses=far).fails
    assert not result(losses=far, precision="bf16").fails
    assert result(losses=LOSSES[:3]).fails == "losses differ by nan"


def test_what_was_compared_on_given_rollouts_stands_for_the_losses_of_samples() -> None:
    other = [x + 1 for x in LOSSES]
    assert not result(method="grpo", losses=other, compared=1e-6).fails
    assert result(method="grpo", losses=other, compared=1e-3).fails
    assert result(method="grpo", compared=1e-6, problem="norms differ").fails == "norms differ"


def test_a_row_fails_without_a_side_or_with_steps_missing() -> None:
    lacking = result()
    lacking.tuned = Timed()
    assert lacking.fails == "a side was not run"
    lacking.tuned = Timed([{"error": "ImportError: no trl"}])
    assert lacking.fails == "the tuned peer: ImportError: no trl"
    assert result(steps=5).fails == "prefloop took 4 steps instead of 5"


def test_every_round_is_compared() -> None:
    ours = Timed([recording([1.0] * 3), recording([1.0] * 3)])
    theirs = Timed([recording([1.0] * 3), recording([1.0] * 3, [0.7, 0.6, 0.5, 0.8])])
    assert loss_difference(ours, [theirs]) == pytest.approx(0.5)


def test_methods_that_sample_are_compared_for_as_many_tokens() -> None:
    found = result(method="grpo", compared=0.0)
    found.ours.recordings[0]["sampled"] = [0.0, 0.0, 100.0, 100.0]
    found.tuned.recordings[0]["sampled"] = [0.0, 0.0, 200.0, 200.0]
    assert found.ratio(found.tuned) == 2.5


def test_the_table_has_every_column_and_the_json_every_figure() -> None:
    rows = [result(flops=50.0, gemm=100.0, tokens=1000.0), result(losses=[1.0] * 4)]
    lines = table(rows, {"chip": "a chip"}).splitlines()
    assert lines[0] == "chip a chip"
    assert [line.count(" | ") + 1 for line in lines[2:]] == [
        len(COLUMNS),
        len(COLUMNS) * 1,
        *[len(COLUMNS)] * 2,
    ]
    assert "**5.0**" in lines[4]
    assert "50%" in lines[4]
    assert "1,000" in lines[4]
    assert "FAILS: losses differ" in lines[5]
    assert "**" not in lines[5]
    kept = json.loads(json.dumps(as_json(rows, {})))
    assert kept["rows"][0]["times_tuned"] == 5.0
    assert kept["rows"][0]["ours"]["recordings"][0]["seconds"] == [9.0, 1.0, 1.0]


def test_figures_are_written_without_what_was_sampled_and_without_nan(tmp_path: Path) -> None:
    row = result()
    row.ours.recordings[0] |= {"completions": [[5, 3]], "logprobs": [[-0.5, -0.1]], "setting": [64, True, ""]}
    write_figures(tmp_path / "speed.json", as_json([row], {"threads": 2}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    kept = json.loads((tmp_path / "speed.json").read_text(), parse_constant=refuse)
    own = kept["rows"][0]["ours"]["recordings"][0]
    assert not {"completions", "logprobs"} & set(own)
    assert own["setting"] == [64, True, ""]
    assert kept["about"] == {"threads": 2}
    assert kept["rows"][0]["times_plain"] is None  # TRL as it comes was not run
    assert row.ours.recordings[0]["completions"] == [[5, 3]]


def test_figures_of_any_benchmark_become_json(tmp_path: Path) -> None:
    figures = [Spread(math.nan, math.inf, 2.0), {"a": (-math.inf, True, None, "nan")}]
    write_figures(tmp_path / "f.json", figures)
    assert json.loads((tmp_path / "f.json").read_text()) == [
        {"median": None, "low": None, "high": 2.0},
        {"a": [None, True, None, "nan"]},
    ]


def test_a_clock_notes_intervals_losses_and_memory() -> None:
    clock = Clock()
    with clock.watching(torch.nn.Linear(1, 1)):
        for _ in range(3):
            clock.add(torch.tensor(0.25, requires_grad=True))
            clock.add(0.5)
            clock.step(torch.tensor(2.0))
        held = torch.ones(80_000_000)  # too large to lie in memory that the process had before
    found = clock.as_dict()
    assert found["losses"] == [0.75] * 3
    assert found["norms"] == [2.0] * 3
    assert len(found["seconds"]) == len(found["busy"]) == 2
    assert all(x >= 0 for x in found["seconds"])
    assert found["memory"]["peak"] >= held.numel() * 4
    assert peak() >= 0.9 * resident() > 0
    if forget_peak():
        assert found["memory"]["growth"] >= 0.9 * held.numel() * 4


def test_samples_of_one_distribution_are_told_from_others() -> None:
    draw = torch.Generator().manual_seed(0)
    one, same, other = (torch.randn(4000, generator=draw) + shift for shift in (0.0, 0.0, 0.5))
    assert apart(one.tolist(), same.tolist()) < 4 < apart(one.tolist(), other.tolist())
    assert apart([1.0, 1.0], [1.0, 1.0]) == 0.0
    assert apart([1.0, 1.0], [2.0, 2.0]) == math.inf


def test_an_engines_log_probs_must_be_the_models() -> None:
    assert agree([-100.0], [-100.001], "fp32") == ""
    assert "off by" in agree([-100.0], [-100.1], "fp32")
    assert agree([-100.0], [-100.1], "bf16") == ""
    one_of_ten = [-4.1, *[-4.0] * 9]
    assert agree(one_of_ten, [-4.0] * 10, "bf16") == ""
    assert "off by" in agree(one_of_ten, [-4.0] * 10, "fp32")
    assert agree([-4.1] * 10, [-4.0] * 10, "bf16") == "the engine's log-probs are off by 2.5e-02 in bf16"
