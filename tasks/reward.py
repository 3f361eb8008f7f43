"""The stage reward: a model of what raters prefer."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.reward import RewardConfig
from tasks.support.reward_fitting import fit
from tasks.support.stage import Stage

COMPARISONS = Path("data/validated/preferences.jsonl")
PROMPTS = Path("data/validated/prompts.jsonl")


def main() -> None:
    """Writes models/reward."""
    with Stage.open("reward", RewardConfig) as stage:
        model, figures = fit(stage, COMPARISONS, PROMPTS, Path("models/sft"))
        with stage.output("models/reward") as folder:
            model.save(folder)
        stage.metrics(figures)


if __name__ == "__main__":
    main()
