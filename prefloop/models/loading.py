"""Causal language models and tokenizers from a folder or the hub: safetensors only, nothing unpickled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.nn.modules.dropout import _DropoutNd
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from prefloop.data.default_templates import PAD, ensure_chat_template, is_own
from prefloop.data.template_trial import try_template
from prefloop.errors import ModelError
from prefloop.models.folder_check import check_folder
from prefloop.models.hub import is_hub_id, local_copy
from prefloop.models.quick_norms import quicken_norms

# What transformers raises for files that are missing, damaged, of another shape or of another library.
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    RuntimeError,
    ImportError,
    OverflowError,
    SafetensorError,
    StrictDataclassError,
)


@contextmanager
def quiet() -> Iterator[None]:
    """Holds back what transformers reports below errors."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def checked_folder(
    source: str, revision: str | None, trust_remote_code: bool, *, weights: bool = True
) -> Path:
    """The folder of a model, one of the hub fetched before, once nothing in it speaks against reading it.

    Args:
        weights: False fetches no weights from the hub.

    Raises:
        ModelError: `source` looks like a path and is no model folder, cannot be fetched, or holds what is not
            read.
    """
    path = Path(source)
    if path.exists():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{source} is no model folder: it has no config.json",
                "point to a folder that holds config.json, model.safetensors and the tokenizer's files",
            )
    elif not is_hub_id(source) or source.count("/") > 1:
        raise ModelError(f"the model folder {source} does not exist")
    else:
        path = local_copy(source, revision, code=trust_remote_code, weights=weights)
    check_folder(path, trust_remote_code)
    return path


def load_tokenizer(
    source: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template and a pad token that is not its end token.

    Raises:
        ModelError: it cannot be loaded.
    """
    folder = checked_folder(source, revision, trust_remote_code, weights=False)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code
        )
    except UNREADABLE as error:
        raise ModelError(
            f"the tokenizer of {source} could not be loaded: {first_line(error)}", _remedy(source)
        ) from error
    tokenizer.name_or_path = source
    if not ensure_chat_template(tokenizer) and not is_own(str(tokenizer.chat_template)):
        try_template(str(tokenizer.chat_template), source)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # Padding with EOS would hide real end tokens under the padding mask.
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.padding_side = "left"
    return tokenizer


def load_policy(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    trust_remote_code: bool = False,
    random_weights: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, dropout off, embeddings wide enough for the pad token.

    Args:
        source: folder or hub id.
        random_weights: take the configuration alone and initialise afresh (for trials of a shape).

    Raises:
        ModelError: it is no such model, holds only pickled weights, or cannot be reached.
    """
    name = str(source)
    folder = checked_folder(name, revision, trust_remote_code, weights=not random_weights)
    tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=trust_remote_code)
    try:
        if random_weights:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
            )
            model, found = loaded
            require_weights(name, found["missing_keys"])
    except UNREADABLE as error:
        raise ModelError(
            f"the model {name} could not be loaded: {first_line(error)}", _remedy(name)
        ) from error
    fit_embeddings(model, tokenizer)
    prepared(model)
    require_causal(name, model)
    return to_device(model, device), tokenizer


def require_weights(source: str, missing: Iterable[str]) -> None:
    """Refuses a model some of whose weights its files do not hold: they would start at random, unnoticed.

    Raises:
        ModelError: `missing` names a weight.
    """
    names = sorted(missing)
    if names:
        raise ModelError(
            f"{source} lacks {len(names)} weights of its architecture, {names[0]} for one",
            "give a complete model of the kind that is wanted (an encoder is no causal language model)",
        )


@torch.no_grad()
def require_causal(source: str, model: PreTrainedModel) -> None:
    """Refuses a model that reads ahead: encoders load as language models, too, and would write nonsense.

    Raises:
        ModelError: what it makes of a token depends on the next one.
    """
    first, last = model(input_ids=torch.tensor([[0, 1], [0, 2]])).logits[:, 0]
    if not torch.allclose(first, last, atol=1e-5, rtol=1e-5, equal_nan=True):
        raise ModelError(
            f"{source} is no causal language model: it reads tokens before they are written",
            "give a decoder; an encoder can be the trunk of a reward model (reward.base)",
        )


def embedding_shape(model: Any) -> tuple[int, int]:
    """Rows and width of a model's input embeddings."""
    rows, width = model.get_input_embeddings().weight.shape
    return int(rows), int(width)


def to_device(model: Any, device: str) -> PreTrainedModel:
    """The model, moved to a device."""
    moved: PreTrainedModel = model.to(device)
    return moved


def fit_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Widens the embeddings to the tokenizer's size and tells the model its pad token."""
    if len(tokenizer) > embedding_shape(model)[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """A model as every training, sampling and scoring has it: no dropout, norms with fewer passes."""
    quicken_norms(turn_dropout_off(model))
    return model


def turn_dropout_off(model: PreTrainedModel) -> PreTrainedModel:
    """Sets every dropout to 0: log-probs of the same tokens must agree between sampling and training.

    So is the noise that some routers of experts add while they train.
    """
    for holder in (model.config, *model.modules()):
        if isinstance(holder, _DropoutNd):
            holder.p = 0.0
        # Others keep it as a number: attention_dropout, resid_pdrop, OPT's layerdrop, router_jitter_noise.
        for name, value in vars(holder).items():
            if ("drop" in name or "jitter" in name) and isinstance(value, float):
                setattr(holder, name, 0.0)
    return model


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence the model was made for (tokens); a large number where it states none."""
    return int(getattr(model.config, "max_position_embeddings", 0) or 1 << 30)


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _remedy(source: str) -> str:
    if Path(source).exists():
        return (
            "the folder must hold safetensors weights (pickled ones are refused), config.json and a tokenizer"
        )
    return "check the name, the revision and the network; or download the model and give its folder"
