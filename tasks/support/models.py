"""Finding a model by the name that people use for it."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.parse import nearest
from prefloop.errors import ModelError

MODELS = Path("models")


def find_model(name: str) -> Path:
    """The folder of a model: a stage's name, such as "ppo", or a path.

    Raises:
        ModelError: there is none; the nearest trained one is named.
    """
    for path in (MODELS / name, Path(name)):
        if (path / "config.json").is_file():
            return path
    trained = sorted(path.parent.name for path in MODELS.glob("*/config.json"))
    if not trained:
        raise ModelError(f"there is no model {name}: none was trained yet", "prefloop run trains them")
    raise ModelError(
        f"there is no model {name}", nearest(name, trained).replace("known keys", "trained models")
    )
