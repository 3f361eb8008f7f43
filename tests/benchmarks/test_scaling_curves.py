"""Exponents of costs, what theory predicts, which series fails; tiny series end to end."""

from __future__ import annotations

import json
import math

import pytest
from torch import nn

from benchmarks import scaling
from benchmarks.growth import fixed_data, groups, rows, shapes
from benchmarks.growth.curve import Curve, Point, exponent, tables
from benchmarks.growth.stopwatch import Case, Stopwatch, points

LINEAR = (1_000, 3_000, 10_000, 30_000)


def curve(power: float, *, fixed: float = 0.0) -> Curve:
    """Costs size ** power, where theory says linear."""
    found = [Point(size, fixed + 1e-6 * size**power, 1.0, size) for size in LINEAR]
    return Curve("sort", "rows", "linear", found)


@pytest.mark.parametrize(
    ("sizes", "costs", "slope"),
    [
        ([1, 10, 100], [2, 20, 200], 1.0),
        ([1, 2, 4, 8], [3, 12, 48, 192], 2.0),
        ([1, 2, 4], [1, 2, 8], 1.5),  # in logarithms to base 2: 0, 1, 3 over 0, 1, 2
        ([5, 50], [7, 7], 0.0),
    ],
)
def test_the_exponent_is_the_slope_of_the_logarithms(sizes, costs, slope):
    assert exponent(sizes, costs) == pytest.approx(slope, abs=1e-12)


def test_one_size_has_no_exponent():
    assert math.isnan(exponent([10], [3.0]))


@pytest.mark.parametrize(("count", "used"), [(2, 2), (3, 3), (5, 3), (6, 3), (7, 4)])
def test_the_upper_half_is_fitted(count, used):
    found = Curve("s", "rows", "", [Point(2.0**i, 1.0, 1.0, 1.0) for i in range(count)])
    assert [point.size for point in found.upper] == [2.0**i for i in range(count - used, count)]


@pytest.mark.parametrize(
    ("power", "fails"), [(1.0, False), (1.19, False), (1.21, True), (2.0, True), (0.5, False)]
)
def test_a_cost_above_theory_fails_and_one_below_does_not(power, fails):
    assert bool(curve(power).troubles) is fails


def test_a_fixed_part_hides_no_square():
    assert curve(2.0, fixed=0.001).troubles


def test_a_quadratic_theory_allows_a_square():
    found = Curve("attend", "tokens", "", [Point(n, n**2.1, 1.0, 3.0 * n**2) for n in (1, 2, 4)])
    assert found.predicted == pytest.approx(2.0)
    assert found.troubles == []


@pytest.mark.parametrize(
    ("peak", "most", "fails"), [(500.0, 1e6, True), (350.0, 1e6, False), (500.0, 2e5, False)]
)
def test_memory_of_more_than_half_a_row_fails_once_the_pieces_are_full(peak, most, fails):
    found = Curve(
        "s", "rows", "", [Point(1e5, 1, 1, 1e5, 300.0), Point(most, most / 1e5, 9, most, peak)], 400.0
    )
    assert found.bytes_a_row == pytest.approx((peak - 300.0) * 2**20 / (most - 1e5))
    assert bool(found.troubles) is fails


def test_the_tables_say_what_missed():
    lines = tables([curve(1.0), curve(0.5), curve(1.5)]).splitlines()
    verdicts = [line.split("|")[5].strip() for line in lines[lines.index("") + 3 :]]
    assert verdicts == ["as theory says", "below theory", "MISSED"]


def test_the_operations_of_a_step_by_hand():
    of = shapes.shape(32, 1)
    # Blocks 4 * 32 * 32 + 3 * 32 * 64 = 10240 weights; 2 each for 4 tokens; head 2 * 32 * 1024 for 2 of them;
    # 4 * 32 for each of 16 pairs; three times for the backward pass.
    assert shapes.weights(of) == 10240
    assert shapes.flops(of, 4, 2) == 3 * (2 * 10240 * 4 + 2 * 32 * 1024 * 2 + 4 * 32 * 16)


def test_the_weights_are_those_of_the_model():
    of = shapes.shape(64, 2)
    model = shapes.model(of)
    found = sum(m.weight.numel() for m in model.model.layers.modules() if isinstance(m, nn.Linear))
    assert found == shapes.weights(of)
    assert model.config.vocab_size == shapes.VOCABULARY


def test_steps_are_timed_without_the_first():
    watch = Stopwatch()
    watch.ends = [(10.0, 1.0), (12.0, 1.5), (15.0, 2.5)]
    assert watch.steps == [(2.0, 0.5), (3.0, 1.0)]


def test_sizes_take_turns_and_medians_are_kept():
    order: list[float] = []

    def case(size: float) -> Case:
        def train(watch: Stopwatch) -> None:
            order.append(size)
            long = 5.0 * size if len(order) > 4 else size  # the last round is disturbed
            watch.ends = [(0.0, 0.0), (long, long / 2)]

        return Case(size, size, train)

    found = points([case(1.0), case(3.0)], 3)
    assert order == [1.0, 3.0] * 3
    assert [(point.wall, point.cpu) for point in found] == [(1.0, 0.5), (3.0, 1.5)]


def test_generated_rows_are_dirty_by_a_tenth_and_the_same_each_time():
    found = list(rows.generated(2000, 0))
    assert found == list(rows.generated(2000, 0))
    assert len({row["prompt"] for row in found}) == 2000
    dirty = [row for row in found if row["rejected"] in ("", row["chosen"]) or "\ufffd" in row["rejected"]]
    assert len(dirty) == 200
    assert found[999]["prompt"] == found[0]["prompt"] + " now"


def test_rows_are_imported_and_assembled(tmp_path):
    width = rows.write_pairs(40, tmp_path)
    assert width > 300
    found = rows.measure("import", tmp_path)
    assert found["rows"] == 40
    assert found["peak"] > 10
    assert rows.measure("ingest", tmp_path)["rows"] == 40
    lines = [len((tmp_path / f"raw/{kind}.jsonl").read_text().splitlines()) for kind in rows.VALIDATED]
    assert sum(lines) > 40


def test_a_tiny_series_from_command_to_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fixed_data, "BATCHES", (1, 2, 4))
    monkeypatch.setattr(fixed_data, "LENGTH", 16)
    code = scaling.main(["batch", "--rounds", "1", "--json", str(tmp_path / "f.json")])
    found = json.loads((tmp_path / "f.json").read_text())
    assert [c["name"] for c in found["curves"]] == ["sft step, batch", "dpo step, batch"]
    for one in found["curves"]:
        assert [point["size"] for point in one["points"]] == [1, 2, 4]
        assert all(point["cpu"] > 0 for point in one["points"])
        assert one["theory"] == pytest.approx(1.0)
    assert code == (1 if any(one["troubles"] for one in found["curves"]) else 0)
    assert "| dpo step, batch | 4 pairs |" in capsys.readouterr().out


def test_a_group_is_sampled_and_learned_from():
    watch = Stopwatch()
    groups.train(2, watch)
    assert len(watch.steps) == groups.STEPS - 1
    assert all("policy_loss" in row for row in watch.rows)


@pytest.mark.parametrize("arguments", [["colour"], ["rows", "--most", "1000"]])
def test_what_cannot_be_measured_is_refused(arguments):
    with pytest.raises(SystemExit) as error:
        scaling.main(arguments)
    assert error.value.code == 2
