"""Models of the hub: their revision pinned to a commit, and a copy here that is read like any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prefloop.errors import ModelError

# What a model consists of. Pickled weights, in whatever number, are not even fetched.
_PARTS: Final = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.vocab")


def is_hub_id(source: str) -> bool:
    """True for NAME or OWNER/NAME that is no file or folder here."""
    return bool(source) and not Path(source).exists() and not source.startswith((".", "/", "~"))


def resolve_revision(source: str, revision: str) -> str | None:
    """The commit that `revision` of a hub model names now; None for a local folder, which has none.

    Raises:
        ModelError: the hub cannot be reached and the cache does not hold the revision.
    """
    if not is_hub_id(source):
        return None
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return HfApi().model_info(source, revision=revision).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        try:
            # A cached copy names its commit in its path: .../snapshots/<commit>/config.json
            return Path(
                hf_hub_download(source, "config.json", revision=revision, local_files_only=True)
            ).parent.name
        except LocalEntryNotFoundError:
            raise _missing(source, revision, error) from error


def local_copy(source: str, revision: str | None, *, code: bool = False, weights: bool = True) -> Path:
    """The folder of the hub's cache that holds a model, fetched where it is not there yet.

    Args:
        code: fetch its Python files, too.
        weights: False leaves out the weights, for a tokenizer.

    Raises:
        ModelError: the hub cannot be reached and the cache does not hold it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = [part for part in _PARTS if weights or part != "*.safetensors"]
    try:
        folder = snapshot_download(
            source,
            revision=revision,
            allow_patterns=[*wanted, "*.py"] if code else wanted,
            ignore_patterns=None if code else ["*/*"],  # other forms of the same weights, as a rule
        )
    except (OSError, HFValidationError) as error:
        raise _missing(source, revision or "main", error) from error
    return Path(folder)


def _missing(source: str, revision: str, error: Exception) -> ModelError:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"the model {source} at {revision} could not be found: {first}",
        "check the name, the revision and the network; or download the model and give its folder",
    )
