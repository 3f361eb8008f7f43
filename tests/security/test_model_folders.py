"""Model folders that mean harm: no code of theirs runs, and nothing outside them is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.data.validation.checking import token_counter
from prefloop.errors import ModelError
from prefloop.files import sha256_file, write_json
from prefloop.models.exporting import export_model
from prefloop.models.hub import resolve_revision
from prefloop.models.loading import load_policy, load_tokenizer
from prefloop.models.reward_model import RewardModel
from prefloop.training.checkpoints import Checkpoints
from tests import tiny

CODE = "import pathlib; pathlib.Path({mark!r}).touch()\n"


class Unpickled:
    """Unpickled, makes the file `mark`: what a poisoned checkpoint does, without harm."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that appears when code from outside ran."""
    return tmp_path / "ran"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model folder, to be tampered with."""
    return tiny.saved(tmp_path / "model")


def edit(path: Path, **values: Any) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def loads(folder: Path) -> list[Callable[[], Any]]:
    """Every way in which the stages read a model folder."""
    return [
        lambda: load_policy(folder),
        lambda: load_policy(folder, random_weights=True),
        lambda: RewardModel.create(folder, seed=0),
        lambda: RewardModel.load(folder),
    ]


def refused(folder: Path, words: str) -> None:
    for load in loads(folder):
        with pytest.raises(ModelError, match=words):
            load()


def test_the_attack_works_where_nobody_defends(mark: Path) -> None:
    pickle.loads(pickle.dumps(Unpickled(mark)))
    assert mark.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "adapter_model.bin", "training_args.bin"])
def test_pickles_beside_or_instead_of_the_weights_are_not_opened(folder: Path, mark: Path, name: str) -> None:
    torch.save({"x": Unpickled(mark)}, folder / name)
    load_policy(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_policy(folder)
    with pytest.raises(ModelError):
        RewardModel.create(folder, seed=0)
    assert not mark.exists()


def test_a_pickle_by_the_name_of_safetensors(folder: Path, mark: Path) -> None:
    torch.save({"x": Unpickled(mark)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_policy(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "file", ["evil.bin", "../evil.safetensors", "/tmp/evil.safetensors", "sub/../../x.safetensors"]
)
def test_an_index_that_names_other_files_than_its_own_safetensors(
    folder: Path, mark: Path, file: str
) -> None:
    target = (folder / file).resolve() if not file.startswith("/") else mark.with_name("unused")
    torch.save({"x": Unpickled(mark)}, target)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {"model.norm.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json names"):
        load_policy(folder)
    assert not mark.exists()


def test_weights_that_the_configuration_names(folder: Path, mark: Path) -> None:
    torch.save({"x": Unpickled(mark)}, folder / "evil.bin")
    edit(folder / "config.json", transformers_weights="evil.bin")
    with pytest.raises(ModelError):
        load_policy(folder)
    assert not mark.exists()


@pytest.mark.parametrize("key", ["AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_model_does_not_run_unless_it_is_trusted(
    folder: Path, mark: Path, key: str, known: bool
) -> None:
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)) + "class Evil: pass\n")
    edit(folder / "config.json", auto_map={key: "evil.Evil"}, **({} if known else {"model_type": "evil"}))
    for load in loads(folder):
        with suppress(ModelError):  # another error would be a fault of ours
            load()
    assert not mark.exists()


@pytest.mark.parametrize("named", ["evil.Evil", "attacker/repository--evil.Evil"])
def test_code_of_a_tokenizer_does_not_run(folder: Path, mark: Path, named: str) -> None:
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)) + "class Evil: pass\n")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [named, None]}}
    edit(folder / "tokenizer_config.json", **config)
    for load in [lambda: load_policy(folder), lambda: token_counter(str(folder))]:
        with suppress(ModelError):
            load()
    assert not mark.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_from_the_hub_is_code_too(folder: Path, key: str) -> None:
    edit(folder / "config.json", **{key: "attacker/kernel:run"})
    refused(folder, rf"{key} of .*config\.json names code of the hub, attacker/kernel:run")


def test_a_folder_with_an_adapter_beside_the_model(folder: Path, mark: Path) -> None:
    torch.save({"x": Unpickled(mark)}, folder / "adapter_model.bin")
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": "attacker/base",
        "r": 1,
        "target_modules": "all-linear",
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    refused(folder, "adapter")
    assert not mark.exists()


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 90 << 20) + b"{" * 100,
        struct.pack("<Q", 8) + b"not json",
        b"",
    ],
    ids=["longer than the file", "ninety megabytes", "no JSON", "none"],
)
def test_a_header_that_lies_about_its_length(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(header)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_policy(folder)


@pytest.mark.parametrize("offsets", [[0, 1 << 40], [-8, 8], [8, 0], [0, 1 << 70]])
def test_a_header_that_lies_about_where_a_tensor_lies(folder: Path, offsets: list[int]) -> None:
    about = json.dumps(
        {"model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": offsets}}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(about)) + about + bytes(64))
    with pytest.raises(ModelError, match="could not be loaded"):
        load_policy(folder)


@pytest.mark.parametrize(
    "values", [{"num_hidden_layers": 10**7}, {"num_hidden_layers": "many"}, {"hidden_size": -1}]
)
def test_a_configuration_that_speaks_of_more_than_the_files_hold(
    folder: Path, values: dict[str, Any]
) -> None:
    edit(folder / "config.json", **values)
    with pytest.raises(ModelError):
        load_policy(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "model.safetensors", "README.md"])
def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_text("a private key")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret")
    with pytest.raises(ModelError, match=f"{name} is a link to .*secret, outside its folder"):
        load_policy(folder)


def test_a_folder_as_the_hubs_cache_lays_it_out_is_loaded(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "cache/blobs", tmp_path / "cache/snapshots/0a1b"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    load_policy(snapshot)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "attacker/model"


@pytest.fixture
def hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Puts the folder, as it is then, into the hub's cache on this machine, and loads it by its name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    def load(how: Callable[..., Any] = load_policy, **options: Any) -> Any:
        cache = tmp_path / "cache/models--attacker--model"
        snapshot = cache / "snapshots" / COMMIT
        for made in (cache / "blobs", cache / "refs", snapshot):
            made.mkdir(parents=True, exist_ok=True)
        (cache / "refs/main").write_text(COMMIT)
        for number, file in enumerate(sorted(folder.iterdir())):
            if file.is_symlink():
                (snapshot / file.name).symlink_to(os.readlink(file))
            else:
                shutil.copyfile(file, cache / "blobs" / str(number))
                (snapshot / file.name).symlink_to(f"../../blobs/{number}")
        return how(NAME, **options)

    return load


def test_a_model_by_its_name_is_loaded_from_the_cache_and_known_by_its_name(
    folder: Path, hub: Callable[..., Any]
) -> None:
    here, _ = load_policy(folder)
    there, tokenizer = hub(revision=COMMIT)
    assert all(
        torch.equal(a, b)
        for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True)
    )
    assert tokenizer.name_or_path == NAME
    assert resolve_revision(NAME, "main") == COMMIT
    with pytest.raises(ModelError, match="attacker/other at main could not be found"):
        load_policy("attacker/other")


@pytest.mark.parametrize(
    "load",
    [
        lambda name, **_: load_policy(name),
        lambda name, **_: load_policy(name, random_weights=True),
        lambda name, **_: RewardModel.create(name, seed=0),
        lambda name, **_: load_tokenizer(name),
        lambda name, **_: token_counter(name),
    ],
    ids=["policy", "shape", "reward model", "tokenizer", "lengths"],
)
@pytest.mark.parametrize("attack", ["adapter", "link", "index"])
def test_what_a_model_by_name_holds_is_refused_before_anything_reads_it(
    folder: Path,
    tmp_path: Path,
    hub: Callable[..., Any],
    load: Any,
    attack: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if attack == "adapter":
        write_json(folder / "adapter_config.json", {"base_model_name_or_path": "attacker/other"})
    elif attack == "link":
        (tmp_path / "secret").write_text("{}")
        (folder / "extra.json").symlink_to(tmp_path / "secret")
    else:
        write_json(folder / "model.safetensors.index.json", {"weight_map": {"w": "../../../../evil.bin"}})
    for reader in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(
            f"transformers.{reader}.from_pretrained", lambda *_, **__: pytest.fail("was read")
        )
    with pytest.raises(ModelError, match=r"adapter_config|outside its folder|index\.json names"):
        hub(load)


def test_pickled_weights_of_a_model_by_name_are_not_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append(options) or str(folder)
    )
    load_policy(NAME, revision=COMMIT)
    files = ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin", "evil.py", "x.pkl"]
    files += ["onnx/model.safetensors", "original/consolidated.pth"]
    wanted = [
        set(
            huggingface_hub.utils.filter_repo_objects(
                files, allow_patterns=one["allow_patterns"], ignore_patterns=one["ignore_patterns"]
            )
        )
        for one in asked
    ]
    assert wanted == [set(files[:3]), set(files[1:3])], "the model's, then those of its tokenizer alone"
    assert {one["revision"] for one in asked} == {COMMIT}


def test_a_checkpoint_that_somebody_replaced_is_passed_over_and_its_code_does_not_run(
    tmp_path: Path, mark: Path
) -> None:
    checkpoints = Checkpoints(tmp_path / "scratch", 0)
    checkpoints.save(1, {"w": torch.ones(2)})
    replaced = checkpoints.save(2, {"w": torch.zeros(2)})
    torch.save({"w": Unpickled(mark)}, replaced / "state.pt")
    write_json(replaced / "checkpoint.json", {"step": 2, "sha256": sha256_file(replaced / "state.pt")})
    found = checkpoints.latest()
    assert found is not None
    assert found[0] == 1
    assert not mark.exists()


def test_an_exported_folder_quotes_its_name_for_the_shell(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out; touch ran"
    export_model(folder, out, "vllm")
    assert f"vllm serve '{out}'" in (out / "README.md").read_text()
