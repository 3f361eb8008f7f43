"""Pinning a hub model's revision to a commit."""

from __future__ import annotations

from pathlib import Path

from prefloop.errors import ModelError


def resolve_revision(source: str, revision: str) -> str | None:
    """The commit that `revision` of a hub model names now; None for a local folder, which has none.

    Raises:
        ModelError: the hub cannot be reached and the cache does not hold the revision.
    """
    if Path(source).exists() or source.startswith((".", "/", "~")):
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
            raise ModelError(
                f"the model {source} at {revision} could not be found: {str(error).splitlines()[0]}",
                "check the name, the revision and the network; or download the model and give its folder",
            ) from error
