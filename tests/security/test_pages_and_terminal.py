"""Text that means harm where people read it: markup in pages, control sequences on a terminal."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows.terminal import Terminal
from prefloop.config.parse import parse
from prefloop.config.validate import ValidateConfig
from prefloop.data.validation.checking import check_kind
from prefloop.data.validation.page import render_page
from prefloop.printable import printable, printable_line
from tasks.support.progress import Progress
from tests.data.test_validation_leaks import leaks, write

HTML = [
    "</p><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "</title></style><iframe srcdoc='<script>alert(1)</script>'>",
    "<!-- --><base href=//attacker.example>",
]
ANSI = {
    "clears the screen": "\x1b[2J",
    "sets the title": "\x1b]0;owned\x07",
    "writes the clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "one-byte CSI": "\x9b2J",
    "goes back over the line": "harmless\rOWNED",
    "backspaces": "abc\x08\x08\x08OWNED",
    "reads backwards": "a\u202ecod.exe",
    "ends a line elsewhere": "a\u2028b",
    "half a character": "a\udcffb",
    "NUL": "a\x00b",
}


class Reader(HTMLParser):
    """What a browser would make of a page: elements, and attributes with their values."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def check_inert(page: str) -> None:
    """Nothing on the page runs, loads or leads elsewhere, and its policy says so to the browser."""
    reader = Reader(page)
    assert not reader.elements & {"script", "iframe", "object", "embed", "base", "form", "img", "link"}
    names = {name for name, _ in reader.attributes}
    assert not [name for name in names if name.startswith("on")]
    assert not {"srcdoc", "formaction", "xlink:href"} & names
    for name, value in reader.attributes:
        if name == "href":
            assert value.startswith("#") or value == "validation.html"
    policy = next(value for name, value in reader.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy, "it falls back to none"
    assert "base-uri 'none'" in policy
    assert "form-action 'none'" in policy


def test_the_validation_page_is_inert_whatever_the_rows_say(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    rows = [
        {"prompt": text, "chosen": text, "rejected": 3, "id": text, "rater": text, "source": text, "line": 1}
        for text in HTML
    ]
    rows += [{"invalid": text, "raw": text, "source": text, "line": 1} for text in HTML]
    rows += [
        {"prompt": f"q{i}", "chosen": "a b", "rejected": "c d", "source": t} for i, t in enumerate(HTML * 4)
    ]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    share = {
        "quarantined_share": {"severity": "warn", "threshold": 0.05},
        "usable_rows": {"severity": "warn"},
    }
    config = parse(ValidateConfig, {"expectations": share}, "validate")
    validated, quarantine = tmp_path / "validated.jsonl", tmp_path / "quarantine.jsonl"
    report = check_kind("preferences", raw, validated, quarantine, config, tmp_path)
    write(tmp_path, demonstrations=HTML, prompts=["p"], evaluation=["e"])
    page = render_page([asdict(report)], leaks(tmp_path))
    check_inert(page)
    assert "&lt;script&gt;" in page, "shown as what it is"


@pytest.mark.parametrize("text", HTML)
def test_the_report_is_inert_whatever_a_response_or_title_says(text: str) -> None:
    from prefloop.report.page import render
    from tests.report.test_report import material

    check_inert(render(material(text=text, title=text)))


@pytest.mark.parametrize("case", ANSI)
def test_what_acts_on_a_terminal_is_written_out(case: str) -> None:
    shown = printable(ANSI[case])
    assert shown.isprintable()
    assert len(shown) > len(ANSI[case])
    shown.encode("utf-8")


def test_text_that_does_not_act_stays_as_it_is() -> None:
    text = "Grüße, 世界 🙂\n\tindented"
    assert printable(text) == text
    assert printable_line(text).isprintable()


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("case", ANSI)
def test_no_stage_writes_control_sequences_to_the_terminal(case: str, live: bool) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return live

    screen = Screen()
    terminal = Terminal(screen)
    terminal.line("sft", f"row {ANSI[case]} is wrong")
    terminal.say(f"stage {ANSI[case]} failed")
    Progress("sft", screen).say(ANSI[case])
    assert printable(screen.getvalue()) == screen.getvalue()


def test_a_line_cannot_pass_for_two(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    Terminal(screen).line("sft", "row x\npromote  evil is champion")
    assert screen.getvalue().count("\n") == 1


def test_a_model_that_answers_in_control_sequences_moves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    from tasks.chat import say

    said = say(iter(["fine ", *ANSI.values()]))
    assert printable(capsys.readouterr().out) == "fine " + "".join(map(printable, ANSI.values())) + "\n"
    assert said.startswith("fine \x1b"), "the conversation goes on with what the model said"


NAMES = {case: f"gpt{text}x" for case, text in ANSI.items()}


def check_screen(text: str) -> None:
    """Nothing of what was printed acts on a terminal, and every name is there, written out."""
    assert printable(text) == text
    for name in NAMES.values():
        assert printable_line(name) in text


def test_a_plan_writes_out_names_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    from flows.cli.output import say
    from flows.planning.model import Action, Plan, Reason, StagePlan
    from flows.planning.show import plan_lines

    reasons = tuple(
        reason
        for name in NAMES.values()
        for reason in (Reason("parameter", name, 1, 2), Reason("parameter", "title", "a", name))
    )
    stages = tuple(StagePlan(f"sft@{name}", Action.RUN, (), reasons[:6]) for name in NAMES.values())
    later = StagePlan("report", Action.MAYBE, (), tuple(Reason("upstream", n) for n in NAMES.values()))
    broken = StagePlan("evil\npromote  evil is champion", Action.RUN, ())
    lines = plan_lines(Plan((*stages, later, broken)))
    assert len(lines) == 6 * len(stages) + 3
    for line in lines:
        say(line)
    check_screen(capsys.readouterr().out)


@pytest.mark.parametrize("live", [True, False], ids=["terminal", "pipe"])
def test_a_comparison_writes_out_what_mlflow_tells(
    live: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import compare
    from tasks.support import records

    names = list(NAMES.values())
    monkeypatch.setenv("COLUMNS", "400")
    made = {
        run: {
            "run": run,
            "params": dict.fromkeys(names, value) | {"title": f"[red]{run}[/red]"},
            "figures": {name: {"gold.mean": 1.0 + value} for name in names},
        }
        for value, run in enumerate((f"run-1{names[0]}", f"run-2{names[1]}"))
    }
    monkeypatch.setattr(records, "local_records", list)
    monkeypatch.setattr(records, "find", lambda name, known: made[name])
    monkeypatch.setattr(compare.sys.stdout, "isatty", lambda: live, raising=False)
    compare.command(list(made), as_json=False)
    output = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)  # the table's own bold and italics
    check_screen(output)
    assert "[red]" in output, "brackets of a name are no markup"


def test_a_status_writes_out_policies_and_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.cli import status
    from flows.leftovers import mark_unfinished

    monkeypatch.chdir(tmp_path)
    for name in ("DVC_ROOT", "PREFLOOP_STATE", "PREFLOOP_PIPELINE_ID"):
        monkeypatch.delenv(name, raising=False)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    (tmp_path / "metrics").mkdir()
    figures = {name: {"gold": {"mean": 1.0}} for name in NAMES.values()}
    (tmp_path / "metrics/evaluate.json").write_text(json.dumps({"policies": figures}))
    (tmp_path / ".prefloop/pipelines").mkdir(parents=True)
    name = NAMES["sets the title"]
    mark_unfinished(tmp_path, name)
    record = {"run": name, "start": "2026-01-01", "status": name, "cost": {"wall_seconds": 1.0}}
    (tmp_path / ".prefloop/pipelines/a.json").write_text(json.dumps(record))
    status.command(as_json=False)
    output = capsys.readouterr().out
    check_screen(output)
    assert output.count(printable_line(name)) == 4, "unfinished, run, its status, policy"
