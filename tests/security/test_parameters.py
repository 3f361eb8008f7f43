"""Parameters that mean harm: tags, anchors that grow, names that would be shell words or paths."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.parameters import apply_changes, load_preset, parse_assignment
from prefloop.config.params import load_params
from prefloop.config.parse import parse
from prefloop.config.policies import check_names
from prefloop.config.read import read_yaml
from prefloop.config.sft import SFTConfig
from prefloop.errors import ConfigError

ROOT = Path(__file__).parents[2]
TAGS = [
    "!!python/object/apply:os.system ['touch ran']",
    "!!python/object/new:pathlib.Path [ran]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!evil {a: 1}",
]
LAUGHS = (
    "{a: &a [x, x, x, x, x, x, x, x, x], "
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}], " for i in range(9))
    + "z: 1}"
)
IDS = ["laughs", "self", "own", "deep"]
NAMES = [
    "a; touch ran",
    "$(touch ran)",
    "`touch ran`",
    "../x",
    "a/b",
    "a b",
    "-x",
    "a\ntouch ran",
    "",
    ".",
    "a&b",
    "é",
]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters that prefloop comes with."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("value", TAGS)
def test_yaml_tags_make_no_objects(workspace: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="the value is no YAML"):
        parse_assignment(f"sft.epochs={value}")
    text = (workspace / "params.yaml").read_text()
    (workspace / "params.yaml").write_text(text + f"extra: {value}\n")
    with pytest.raises(ConfigError, match="broken YAML"):
        load_params(workspace / "params.yaml")
    with pytest.raises(ConfigError):
        apply_changes(workspace, "", ["sft.epochs=2"], ask=False, say=lambda line: None)
    assert not (workspace / "ran").exists()


@pytest.mark.parametrize(
    "value", [LAUGHS, "&a [*a]", "&a {b: *a}", "[" * 300 + "]" * 300], ids=["laughs", "self", "own", "deep"]
)
def test_anchors_that_grow_without_end_are_refused(workspace: Path, value: str) -> None:
    with pytest.raises(ConfigError):
        parse_assignment(f"sft.epochs={value}")
    (workspace / "params.yaml").write_text((workspace / "params.yaml").read_text() + f"extra: {value}\n")
    for read in (read_yaml, load_params):
        with pytest.raises(ConfigError, match=r"params\.yaml.*line|more than"):
            read(workspace / "params.yaml")
    with pytest.raises(ConfigError, match="more than"):
        apply_changes(workspace, "", ["sft.epochs=2"], ask=False, say=lambda line: None)


def test_anchors_as_people_use_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n")
    assert read_yaml(tmp_path / "p.yaml") == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000])
def test_values_that_python_cannot_read_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="the value is no YAML"):
        parse_assignment(f"sft.learning_rate={value}")


@pytest.mark.parametrize("value", [".nan", "nan", "0x" + "f" * 400])
def test_what_is_no_number_passes_no_bound(value: str) -> None:
    with pytest.raises(ConfigError, match="learning_rate must be a number"):
        parse(SFTConfig, {"learning_rate": parse_assignment(f"x={value}")[1]}, "sft")


@pytest.mark.parametrize("key", ["sft.__class__", "../x.y"])
def test_keys_that_are_none_are_refused_and_nothing_is_written(workspace: Path, key: str) -> None:
    before = (workspace / "params.yaml").read_bytes()
    with pytest.raises(ConfigError, match="unknown key"):
        apply_changes(workspace, "", [f"{key}=1"], ask=False, say=lambda line: None)
    assert (workspace / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("name", ["../params", "/etc/passwd", "../presets/small", "small/../small"])
def test_a_preset_is_one_of_the_presets(workspace: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="there is no preset"):
        load_preset(workspace, name)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_more_than_a_word_is_refused(workspace: Path, name: str) -> None:
    values = yaml.safe_load((workspace / "params.yaml").read_text())
    with pytest.raises(ConfigError):
        check_names({"policies": {"ppo": {name: {}}}})
    with pytest.raises(ConfigError):
        check_names({"evaluate": {"policies": [name]}})
    values["policies"]["ppo"][name] = {}
    values["evaluate"]["policies"].append(name)
    (workspace / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match="is no name for a folder"):
        load_params(workspace / "params.yaml")


def test_names_that_people_use_are_taken() -> None:
    check_names(read_yaml(ROOT / "params.yaml"))
    check_names(
        {"policies": {"ppo": {"ppo-loose_2": None}}, "evaluate": {"policies": ["sft", "ppo-loose_2"]}}
    )


@pytest.mark.slow
def test_a_bare_dvc_repro_ends_before_it_runs_a_name_as_a_command(tmp_path: Path) -> None:
    (tmp_path / "check.py").write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from prefloop.config.policies import check_names, read_yaml\n"
        "check_names(read_yaml('params.yaml')); open('code.json', 'w').write('{}')\n"
    )
    stages = {
        "environment": {
            "cmd": f"{sys.executable} check.py",
            "always_changed": True,
            "outs": [{"code.json": {"cache": False}}],
        },
        "ppo": {"foreach": "${policies.ppo}", "do": {"cmd": "echo ${key}", "deps": ["code.json"]}},
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"policies": {"ppo": {"a; touch ran": {}}}}))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode
    assert not (tmp_path / "ran").exists()
