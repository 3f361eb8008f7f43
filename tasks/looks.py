"""The stage looks: how far from SFT each policy was on its way, and what judges think of it there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefloop.config.compute import ComputeConfig
from prefloop.config.evaluate import EvaluateConfig
from prefloop.config.read import read_section
from prefloop.evaluation.answering import Sampled, Setting
from prefloop.evaluation.answers import EvaluationPrompt
from prefloop.evaluation.judges import WORLD_SOURCE, Judges
from prefloop.evaluation.looks import FromSFT, Trail, read_trail, trail_figures
from prefloop.files import read_json, read_jsonl
from prefloop.models.loading import load_policy
from prefloop.training.environment import apply
from tasks.support.looks import LOOKS, PROMPTS
from tasks.support.stage import Stage

MODELS = Path("models")


def read_trails(policies: list[str], judge: str) -> list[Trail]:
    """What policies answered on their way. Gold judges the prompts of its own world alone."""
    prompts = {str(row["id"]): EvaluationPrompt.from_row(row) for row in read_jsonl(PROMPTS)}
    if judge == "gold":
        prompts = {name: prompt for name, prompt in prompts.items() if prompt.source == WORLD_SOURCE}
    trained = [name for name in policies if (LOOKS / f"{name}.jsonl").exists()]  # base and sft have none
    found = [read_trail(name, LOOKS / f"{name}.jsonl", prompts) for name in trained]
    return [trail for trail in found if trail is not None]


def held_against_sft(trails: list[Trail], setting: Setting) -> list[tuple[Sampled, list[Sampled]]]:
    """For each trail SFT's answers, and its own with their log-ratios; in float32, as policies train."""
    model, tokenizer = load_policy(
        MODELS / "sft", device=setting.environment.device, trust_remote_code=setting.trust_remote_code
    )
    sft = FromSFT(model, tokenizer, setting)
    return [(sft.start(trail), sft.looks(trail)) for trail in trails]


def main() -> None:
    """Writes metrics/looks.json."""
    with Stage.open("looks", EvaluateConfig, section="evaluate") as stage:
        config = stage.config
        apply(stage.compute, config.threads)
        trust = read_section("compute", ComputeConfig).trust_remote_code
        setting = Setting(config, stage.compute, stage.seed, trust)
        stage.dataset("prompts", PROMPTS)
        judge = read_json(MODELS / "judge" / "judge.json")["kind"]
        trails = read_trails(config.policies, judge)
        figures: dict[str, Any] = {"judge": judge, "policies": {}}
        if trails:
            count = sum(len(trail.looks) for trail in trails)
            stage.say(f"{count} looks at {len(trails)} policies")
            # SFT leaves memory before the judges come.
            sampled = held_against_sft(trails, setting)
            judges = Judges.load(MODELS, [prompt for trail in trails for prompt in trail.prompts], setting)
            for done, (trail, (start, looks)) in enumerate(zip(trails, sampled, strict=True), start=1):
                figures["policies"][trail.policy] = trail_figures(
                    [step for step, _, _ in trail.looks],
                    [judges.scored(look, trail.prompts) for look in looks],
                    judges.scored(start, trail.prompts),
                    resamples=config.bootstrap,
                )
                stage.progress.update(done, len(trails), {})
        stage.metrics(figures)


if __name__ == "__main__":
    main()
