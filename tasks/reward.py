"""The stage reward: a model of what raters prefer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config.reward import RewardConfig
from prefloop.models.reward_model import RewardModel
from tasks.support.reward_fitting import fit
from tasks.support.stage import Stage
from tasks.support.training import card

COMPARISONS = Path("data/validated/preferences.jsonl")
PROMPTS = Path("data/validated/prompts.jsonl")


def main() -> None:
    """Writes models/reward."""
    with Stage.open("reward", RewardConfig) as stage:
        model, figures = fit(stage, COMPARISONS, PROMPTS, Path("models/sft"))
        with stage.output("models/reward") as folder:
            model.save(folder, about(stage, model, figures))
        stage.metrics(figures)


def about(stage: Stage[RewardConfig], model: RewardModel, figures: dict[str, Any]) -> dict[str, str]:
    """The model card: what it was fitted to, how, and how well it orders what it did not see."""
    config = stage.config
    size = sum(parameter.numel() for parameter in model.parameters())
    how = [
        f"{model.model.config.model_type} trunk from `{config.base}`, {size:,} parameters in all",
        f"loss {config.loss}, learning rate {config.learning_rate:g}, "
        f"{config.batch_size} prompts a step, {config.steps or config.epochs} "
        f"{'steps' if config.steps else 'epochs'}",
        f"length control: {config.length_control}",
    ]
    if model.members > 1:
        trunk = "on one trunk" if config.ensemble.share_trunk else "with trunks of their own"
        how.append(f"{model.members} members {trunk}, aggregate {config.ensemble.aggregate}")
    measured = [f"{figures['held_out_prompts']:,} prompts held out"]
    if figures["held_out_prompts"]:
        low, high = figures["accuracy"]["ci95"]
        measured += [
            f"pairs ordered rightly: {figures['accuracy']['mean']:.3f} (95 % from {low:.3f} to {high:.3f})",
            f"expected calibration error: {figures['ece']:.3f}",
            *(
                f"baseline {name}: {found['mean']:.3f}"
                for name, found in sorted(figures["baselines"].items())
            ),
        ]
    measured.append(f"score a token of length on SFT completions: {figures['length_slope']:+.4f}")
    facts = card(
        stage,
        "A reward model: how much raters would prefer an answer. `reward_normalisation.json` brings raw "
        "scores to mean 0 and standard deviation 1 over answers of the SFT policy.",
        [f"{figures['pairs']:,} pairs of {figures['prompts']:,} prompts with ranked answers"],
    )
    limits = (
        "Scores compare answers to one prompt; between prompts they mean little. A policy optimised against "
        "them finds what raters would not have liked: hold its distance from the SFT policy, and judge it by "
        "another."
    )
    return {
        **facts,
        "Parameters": _listed(how),
        "Measured": _listed(measured),
        "Limits": f"{limits} {facts['Limits']}",
    }


def _listed(lines: list[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


if __name__ == "__main__":
    main()
