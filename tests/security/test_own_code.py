"""prefloop's own code holds no call that runs, unpickles or unpacks what comes from outside."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("prefloop", "tasks", "flows")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "tarfile", "zipfile"}
CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "shutil.unpack_archive",
    "yaml.unsafe_load",
    "yaml.full_load",
}
CALLS |= {"subprocess.getoutput", "subprocess.getstatusoutput", "np.load", "numpy.load", "pd.read_pickle"}


def faults(source: str) -> Iterator[str]:
    """What a module does that it must not, with the line."""
    ruamel = "ruamel" in source  # whose loaders make no objects; each is made as `yaml = YAML()`
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
        if name in CALLS or (name == "torch.load" and given.get("weights_only") != "True"):
            yield f"{node.lineno}: {name}"
        if name == "yaml.load" and not (ruamel or len(node.args) > 1 or "Loader" in given):
            yield f"{node.lineno}: yaml.load without a loader"
        if given.get("shell", "False") != "False":
            yield f"{node.lineno}: {name}(shell=...)"
        if given.get("allow_pickle", "False") != "False" or given.get("trust_remote_code") == "True":
            yield f"{node.lineno}: {name} allows code"


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_runs_or_unpickles_what_comes_from_outside(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    found = [f"{file.relative_to(ROOT)}:{fault}" for file in files for fault in faults(file.read_text())]
    assert not found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from tarfile import open",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "eval(x)",
        "subprocess.run(x, shell=True)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(text)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "os.system(x)",
    ],
)
def test_what_is_looked_for_is_found(source: str) -> None:
    assert list(faults(source))


def test_what_is_right_is_left_alone() -> None:
    assert not list(faults("torch.load(f, weights_only=True); yaml.load(t, LOADER); model.eval()"))
