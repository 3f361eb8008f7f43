"""The report: inert whatever a response holds, whole without a gold judge, equal bytes for equal runs."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from prefloop import report
from prefloop.config.promote import PromoteConfig
from prefloop.evaluation.answers import Answers, EvaluationPrompt
from prefloop.evaluation.merge import merge
from prefloop.evaluation.promotion import decide
from prefloop.evaluation.summary import summarise, summarise_oracle
from prefloop.report.charts import Interval, interval_chart, thin
from prefloop.report.comparison import colours_of
from prefloop.report.conversations import choose
from prefloop.report.labels import spread
from prefloop.report.looks import look_charts
from prefloop.report.material import Material
from prefloop.report.page import flat, render
from prefloop.report.svg import Scale, element, short

ATTACK = "</p><script>alert('x')</script><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Collects elements and text, and checks that tags nest."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def policy(name: str, judge: list[float], *, gold: bool = True, text: str = "fine") -> Answers:
    n = len(judge)
    prompts = tuple(EvaluationPrompt(f"p{i}", f"ask {i}", ("question", "opinion")[i % 2]) for i in range(n))
    scores = np.array(judge, dtype=float)
    return Answers(
        name, prompts, tuple(f"{text} {name} {i}" for i in range(n)), np.full(n, 6), np.ones(n, dtype=bool),
        np.zeros(n) if name == "sft" else np.full(n, 0.7), scores * 0.5, scores,
        "gold" if gold else "reward_model", scores if gold else None, None,
    )  # fmt: skip


def looks_of(steps: dict[int, tuple[float, float, float]], *, gold: bool = True) -> dict:
    """A policy's part of metrics/looks.json, from (KL, judge's gain, reward model's gain) by step."""

    def estimate(mean: float) -> dict:
        return {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "n": 8}

    start = {"n": 8, "gold": estimate(1.0) if gold else None}
    start |= {"judge_score": estimate(1.0), "reward": estimate(0.0)}
    looks = {
        str(step): {
            **start, "step": step, "kl": kl, "kl_ci95": [kl - 0.1, kl + 0.1],
            "judge_gain": estimate(judge), "reward_gain": estimate(reward),
        }
        for step, (kl, judge, reward) in steps.items()
    }  # fmt: skip
    return {"sft": start, "looks": looks}


HACKED = {2: (0.5, 0.4, 0.6), 10: (3.0, -0.2, 1.9), 4: (1.5, 0.6, 1.2)}
STEADY = {1: (0.4, 0.3, 0.2), 2: (0.9, 0.5, 0.4)}


def material(
    *, gold: bool = True, text: str = "fine", title: str = "a run", only: tuple[str, ...] = ()
) -> Material:
    policies = {
        "base": policy("base", [-1.0, -2, -1, -2, -1, -2], gold=gold, text=text),
        "sft": policy("sft", [0.0, 1, 0, 1, 0, 2], gold=gold, text=text),
        "ppo": policy("ppo", [1.0, 2, 1, 2, 1, 0], gold=gold, text=text),
    }
    policies = {name: answers for name, answers in policies.items() if not only or name in only}
    figures = {name: summarise(answers, policies["sft"], resamples=100) for name, answers in policies.items()}
    rows = {name: list(answers.rows()) for name, answers in policies.items()}
    if gold:
        figures["sft"]["oracle"] = summarise_oracle(np.full(6, 4.0), np.full(6, 3.0), 64, resamples=100)
        for row in rows["sft"]:
            row |= {"exact": 4.0, "reachable": 3.0}
    evaluation = merge(figures, rows, resamples=100)
    rules = PromoteConfig()
    return Material(
        title=title, seed=3, samples=8, rules=rules, evaluation=evaluation, answers=rows,
        looks={
            "judge": "gold" if gold else "reward_model",
            "policies": {"ppo": looks_of(HACKED, gold=gold), "dpo": looks_of(STEADY, gold=gold)},
        },
        curves={"ppo": [{"step": s, "score": 0.1 * s, "objective/kl": 0.05 * s} for s in (1.0, 2.0, 3.0)]},
        ingest={"sources": {"world": {"preferences": {"in": 9, "used": 8, "invalid": 1}}}},
        validation={
            "preferences": {"rows_in": 9, "validated": 6, "quarantined": 3, "reasons": {"encoding": 3}}
        },
        stages={"reward": {"accuracy": {"mean": 0.8}}}, decision=decide(evaluation, rules).as_json(),
        environment=dict.fromkeys(("device_name", "precision", "threads", "torch", "transformers"), "known"),
        settings={"ppo": {"kl_coef": 0.1}},
    )  # fmt: skip


def test_a_response_that_holds_a_script_is_shown_and_inert():
    page = read(render(material(text=ATTACK, title=f"run {ATTACK}")))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any("<script>alert('x')</script>" in text for text in page.text)


def test_nothing_is_fetched_from_anywhere():
    page = read(render(material()))
    links = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(link is not None and (link.startswith("#") or link == "validation.html") for link in links)
    assert {"link", "iframe", "object", "script"}.isdisjoint(page.tags)


def test_tells_the_figures_the_decision_and_the_data():
    run = material()
    text = " ".join(read(render(run)).text)
    assert "win_rate" in text  # the promotion rule
    assert "encoding 3" in text
    assert "exact maximum 4.00" in text
    assert f"{run.evaluation['policies']['ppo']['gold']['mean']:.2f}" in text
    assert "Gap closed" in text
    assert {"Gold against KL", "Reward model against KL"} <= set(read(render(run)).text)


def test_without_a_gold_judge_the_judge_is_named_and_gold_is_left_out():
    text = " ".join(read(render(material(gold=False))).text)
    assert "A reward model fitted on other prompts" in text
    assert "Gold score" not in text
    assert "Gap closed" not in text
    assert "Judge's score against KL" in text
    assert "Gold against KL" not in text


def test_reference_policies_alone_still_make_a_page():
    text = " ".join(read(render(material(only=("base", "sft")))).text)
    assert "none is promoted" in text


def test_equal_runs_give_equal_bytes():
    assert render(material()) == render(material())


def test_a_run_without_curves_data_or_samples_still_makes_a_page():
    bare = dataclasses.replace(
        material(), looks={}, curves={}, ingest={}, validation={}, stages={}, settings={}, samples=0
    )
    text = " ".join(read(render(bare)).text)
    assert "No stage logged a curve" in text
    assert "No policy was looked at" in text


def test_good_and_bad_conversations_by_their_rules():
    run = material()
    groups = {group.title: group for group in choose(run.answers, ["sft", "ppo"], "ppo", 8)}
    worst = groups["ppo lost most"].conversations
    assert [talk.answers["ppo"]["id"] for talk in worst] == [
        "p5"
    ]  # the one prompt that ppo lost: 0 against 2
    best = groups["ppo gained most"].conversations
    assert {talk.answers["ppo"]["judge"] - talk.answers["sft"]["judge"] for talk in best} == {1.0}
    assert {talk.kind for talk in best} == {"question", "opinion"}
    shown = [talk.answers["sft"]["id"] for group in groups.values() for talk in group.conversations]
    assert len(shown) == len(set(shown))


def test_messages_are_shown_turn_by_turn():
    run = material()
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "q"},
    ]
    for rows in run.answers.values():
        for row in rows:
            row["prompt"] = turns
    groups = choose(run.answers, ["sft", "ppo"], "ppo", 4)
    assert [turn["role"] for turn in groups[0].conversations[0].turns] == ["user", "assistant", "user"]


class TestCharts:
    def test_ticks_are_round_and_inside(self):
        assert Scale(0.0, 1.0, 0, 100).ticks() == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        assert Scale(-1.3, 2.1, 0, 100).ticks(4) == [-1.0, 0.0, 1.0, 2.0]
        assert Scale(1e-5, 4e-5, 0, 1).ticks(3) == pytest.approx([1e-5, 2e-5, 3e-5, 4e-5])

    def test_scale_maps_ends_to_ends_and_survives_one_value(self):
        scale = Scale(2.0, 4.0, 10.0, 110.0)
        assert (scale(2.0), scale(3.0), scale(4.0)) == (10.0, 60.0, 110.0)
        single = Scale.over([7.0, 7.0, float("nan")], 0, 10)
        assert single.low < 7.0 < single.high

    def test_elements_escape_text_and_attributes(self):
        assert str(element("text", "<b>", title='"&')) == '<text title="&#34;&amp;">&lt;b&gt;</text>'

    def test_thinning_keeps_means_and_drops_what_is_not_finite(self):
        xs, ys = thin([0, 1, 2, 3, 4], [1.0, 3.0, float("nan"), 5.0, 7.0], points=2)
        assert (xs, ys) == ([0.5, 3.5], [2.0, 6.0])

    def test_an_interval_is_drawn_to_scale(self):
        chart = str(
            interval_chart([Interval("a", 1.0, 0.0, 2.0, "c0"), Interval("b", 3.0, 2.0, 4.0, "c1")], "t")
        )
        parts = Reader()
        parts.feed(chart)
        centres = [float(v) for k, v in parts.attributes if k == "cx" and v]
        assert len(centres) == 2
        assert centres[0] < centres[1]

    def test_a_policys_way_starts_at_sft_and_goes_through_its_looks_in_order(self):
        looks = {"judge": "gold", "policies": {"ppo": looks_of(HACKED), "dpo": looks_of(STEADY)}}
        (title, _, judged), (other, _, optimised) = look_charts(looks, {"ppo": "c2", "dpo": "c3"})
        assert (title, other) == ("Gold against KL", "Reward model against KL")
        lines = {}
        for name, chart in (("judge", judged), ("reward", optimised)):
            parts = Reader()
            parts.feed(f"<div>{chart}</div>")
            assert {"ppo", "dpo", "sft"} <= set(parts.text)
            assert any("ppo at step 10: 3.00 nats" in text for text in parts.text)
            paths = [value for key, value in parts.attributes if key == "points" and value]
            ways = [[tuple(map(float, p.split(","))) for p in path.split()] for path in paths]
            # Before the leaders to the labels come the ways: SFT and three looks, SFT and two.
            assert [len(way) for way in ways[:2]] == [4, 3]
            lines[name] = ways[:2]
        for ppo, dpo in lines.values():
            assert ppo[0] == dpo[0], "both start at SFT"
            across = [x for x, _ in ppo]
            assert across == sorted(across), "steps 2, 4, 10 go outwards"
            shares = [(x - across[0]) / (across[-1] - across[0]) for x in across]
            assert shares == pytest.approx([0, 0.5 / 3, 0.5, 1], abs=1e-4)  # KL 0, 0.5, 1.5, 3
        judge, reward = ([y for _, y in lines[name][0]] for name in ("judge", "reward"))
        assert judge[3] > judge[0] > judge[1] > judge[2], "up, up, and at last below SFT (pixels grow down)"
        assert reward == sorted(reward, reverse=True), "while the reward model sees nothing but gains"

    def test_each_of_fourteen_policies_has_a_colour_that_the_page_defines(self):
        style = (Path(report.__file__).parent / "report.css").read_text(encoding="utf-8")
        colours = list(colours_of([f"policy-{number}" for number in range(14)]).values())
        assert len(set(colours)) == 14
        assert all(f".{colour} {{ --c: var(--p{colour[1:]}); }}" in style for colour in colours)
        assert all(style.count(f"--p{colour[1:]}: #") == 3 for colour in colours)  # light, dark, in print

    def test_the_longest_name_fits_beside_its_row(self):
        name = "a-policy-with-a-name"
        chart = interval_chart([Interval(name, 0.5, 0.4, 0.6, "c1")], "scores")
        x = float(re.search(rf'<text x="([0-9.]+)"[^>]*>{name}<', chart)[1])
        assert x >= 6.8 * len(name)

    def test_labels_are_spread_in_their_order_and_stay_inside(self):
        assert spread([50.0, 120.0], 10, 200) == [50.0, 120.0]
        assert spread([60.0, 58.0, 61.0], 10, 200) == [72.0, 58.0, 86.0]
        assert spread([199.0, 198.0], 10, 200) == [200.0, 186.0]
        assert spread([], 10, 200) == []

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0, "0"), (0.25, "0.25"), (-1.5, "\N{MINUS SIGN}1.5"), (3e-4, "3e-4"), (2.5e6, "2.5e6")],
    )
    def test_numbers_on_axes_are_short(self, value, text):
        assert short(value) == text


def test_settings_become_dotted_names():
    nested = {"a": {"b": 1.0, "c": ["x", 1]}, "d": None, "e": True, "f": "x"}
    words = {"a.b": "1", "a.c": '["x", 1]', "d": "null", "e": "true", "f": "x"}
    assert dict(flat(nested)) == words
