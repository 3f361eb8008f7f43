"""Log-probs of completions under the reference: computed once, kept under a hash of what they follow from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.data.batching import chunks
from prefloop.data.templates import Encoded
from prefloop.files import atomic_file
from prefloop.models.adapters import plain, reference_mode
from prefloop.models.shared_prompt import Tree
from prefloop.training.direct import completion_logprobs
from prefloop.training.distribution import ranks
from prefloop.training.pairs import EncodedComparison

FORMAT = 1
"""Raised when what is computed from the same rows and weights changes."""

# What `from_pretrained` and `save_pretrained` write into a configuration without an effect on log-probs.
_INCIDENTAL = ("_name_or_path", "transformers_version", "use_cache", "_commit_hash")


@torch.no_grad()
def row_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Encoded],
    precision: str,
    cache: Path | None = None,
    *,
    weights: str = "",
    trees: Sequence[Tree] = (),
) -> Tensor:
    """Log-probs SUMMED over each row's completion under the reference: (N,) float32 on the CPU.

    Args:
        model: the reference; of a model with adapters, the one they were put on.
        cache: a folder. What was computed is kept there under a hash of the weights, the tokens and the
            precision, so that trainings with the same reference and rows, or resumed ones, read it. On the
            CPU the number of threads counts, too: it may change the last digit. A damaged file is computed
            again.
        weights: content hash of the reference; "" computes `weights_hash`.
        trees: as for `completion_logprobs`.
    """
    file = None
    if cache is not None:
        key = _key(weights or weights_hash(model), rows, precision, model.device.type, trees)
        file = cache / f"{key}.safetensors"
        # Rank 0 looks, lest another find what a further training writes at this moment.
        stored = ranks().from_main(_stored(file, len(rows)) if ranks().main else None)
        if stored is not None:
            return stored
    model.eval()
    # What goes through the model together: a tree with all its rows, or a row.
    lengths = [len(tree) for tree in trees] or [len(row.input_ids) for row in rows]
    counts = [len(tree.branches) for tree in trees] or [1] * len(rows)
    places = [range(start, end) for start, end in pairwise([0, *accumulate(counts)])]
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    # Several processes share whole passes, so that each number is the one that a single process computes.
    passes = list(chunks(order, max(128 // max(counts, default=1), 1)))
    found: list[Tensor] = []
    with reference_mode(model):
        for group in ranks().share(passes):
            own = [rows[place] for i in group for place in places[i]]
            together = [trees[i] for i in group] if trees else []
            sums, _ = completion_logprobs(model, tokenizer, own, precision, together)
            found.append(sums.cpu())
    result = torch.zeros(len(rows))
    for group, values in zip(passes, ranks().woven(ranks().gather(found)), strict=True):
        result[[place for i in group for place in places[i]]] = values
    if file is not None and ranks().main:
        with atomic_file(file, "wb") as handle:
            handle.write(save({"reference": result}, {"sha256": _digest(result)}))
    return result


def reference_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    precision: str,
    cache: Path | None = None,
    *,
    weights: str = "",
) -> list[Tensor]:
    """The same for every completion of every comparison: (K,) float32 on the CPU for each."""
    sizes = [len(comparison.completions) for comparison in comparisons]
    flat = [row for comparison in comparisons for row in comparison.completions]
    trees = [tree for comparison in comparisons for tree in comparison.trees]
    result = row_logprobs(model, tokenizer, flat, precision, cache, weights=weights, trees=trees)
    return list(result.split(sizes)) if sizes else []


def weights_hash(model: Any) -> str:
    """Hex SHA-256 over a model's configuration and parameters, adapters left out: the reference's content."""
    inner = plain(model)
    about = {k: v for k, v in inner.config.to_dict().items() if k not in _INCIDENTAL}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, parameter in inner.named_parameters():
        if "lora_" not in name:
            own = parameter.detach().cpu().contiguous().reshape(-1)
            digest.update(f"{name.replace('.base_layer', '')} {own.dtype} {tuple(parameter.shape)}".encode())
            digest.update(own.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _key(
    weights: str, rows: Sequence[Encoded], precision: str, device: str, trees: Sequence[Tree] = ()
) -> str:
    threads = torch.get_num_threads() if device == "cpu" else 0
    digest = hashlib.sha256(repr((FORMAT, weights, precision, device, threads, torch.__version__)).encode())
    for row in rows:
        # The lengths keep rows apart, and prompts from completions.
        ids = [len(row.prompt_ids), len(row.completion_ids), *row.input_ids]
        digest.update(np.asarray(ids, dtype=np.int64).tobytes())
        digest.update(bytes(row.trainable))
    if trees:
        shapes = [[len(tree.prefix), len(tree.branches)] for tree in trees]
        digest.update(b"trees" + np.asarray(shapes, dtype=np.int64).tobytes())
    return digest.hexdigest()


def _stored(file: Path, count: int) -> Tensor | None:
    """What `file` holds; None where there is none, or it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            values: Tensor = opened.get_tensor("reference")
            noted = (opened.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return values if values.shape == (count,) and noted == _digest(values) else None


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
