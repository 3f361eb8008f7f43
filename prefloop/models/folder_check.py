"""What a model folder may hold, before anything of it is loaded: nothing that runs or leads elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from prefloop.errors import ModelError
from prefloop.files import link_out

MOST_LAYERS: Final = 10_000
"""Of anything that a configuration counts by layers: they are built one by one before weights are read."""
_KERNELS: Final = ("attn_implementation", "experts_implementation")
_TRUST: Final = "compute.trust_remote_code allows code, if you have read it and trust who wrote it"


def check_folder(folder: Path, trust_remote_code: bool = False) -> None:
    """Refuses a folder whose loading would read files outside it, unpickle, or fetch and run code.

    Raises:
        ModelError: which file and what is wrong with it.
    """
    for file in sorted(folder.iterdir()):
        if (target := link_out(file)) is not None:
            raise ModelError(
                f"{file} is a link to {target}, outside its folder: it is not followed",
                "what came from others may point at files of yours; copy the file in place if it is meant",
            )
        if file.name.endswith(".safetensors.index.json"):
            _check_index(file)
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), which would be put onto the model unasked",
            "merge it into the model's weights, or remove adapter_config.json",
        )
    if (folder / "config.json").exists():
        _check_config(folder / "config.json", trust_remote_code)


def _check_index(file: Path) -> None:
    """An index names the files beside it that hold the weights."""
    for name in {str(name) for name in _mapping(_mapping(file).get("weight_map")).values()}:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{file} names {name!r}: only .safetensors files beside it are read",
                "save the model again with safetensors (save_pretrained does)",
            )


def _check_config(file: Path, trust_remote_code: bool) -> None:
    for key, value in _entries(_mapping(file)):
        if key == "transformers_weights" and not (
            Path(str(value)).name == value and str(value).endswith(".safetensors")
        ):
            raise ModelError(f"{file} names the weights {value!r}", "save the model again with safetensors")
        if key.lstrip("_") in _KERNELS and "/" in str(value) and not trust_remote_code:
            raise ModelError(f"{key} of {file} names code of the hub, {value}", f"remove the key; {_TRUST}")
        if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise ModelError(f"{key} of {file} is {value}: no model has more than {MOST_LAYERS}")


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key with its value, those of nested configurations too."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
            if key.lstrip("_") not in _KERNELS:
                continue
        yield str(key), value


def _mapping(source: Any) -> Mapping[str, Any]:
    """A JSON file's or a value's mapping; empty where it is none, which loading will say."""
    if isinstance(source, Path):
        try:
            source = json.loads(source.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
    return source if isinstance(source, Mapping) else {}
