"""The stage evaluate@POLICY: one policy's answers to the held-out prompts, judged and held against SFT's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from prefloop.config.compute import ComputeConfig
from prefloop.config.evaluate import EvaluateConfig
from prefloop.config.read import read_section
from prefloop.errors import ConfigError, DataError
from prefloop.evaluation.answering import Setting, sample_many, sample_policies
from prefloop.evaluation.answers import MAIN, EvaluationPrompt
from prefloop.evaluation.gold_judge import exact_maximum, gold_scores
from prefloop.evaluation.intervals import Floats, rounded
from prefloop.evaluation.judges import Judges
from prefloop.evaluation.oracle import best_of, spread_over_kinds
from prefloop.evaluation.summary import summarise, summarise_oracle
from prefloop.files import read_jsonl, write_jsonl
from prefloop.training.environment import apply
from prefloop.world.facts import World
from tasks.support.stage import Stage

MODELS = Path("models")
PROMPTS = Path("data/validated/evaluation.jsonl")


def read_prompts(path: Path, per_panel: int) -> list[EvaluationPrompt]:
    """The evaluation prompts, at most `per_panel` of each panel (0 takes all).

    Raises:
        DataError: there is no prompt.
    """
    taken: dict[str, int] = {}
    prompts = []
    for row in read_jsonl(path):
        prompt = EvaluationPrompt.from_row(row)
        taken[prompt.panel] = taken.get(prompt.panel, 0) + 1
        if not per_panel or taken[prompt.panel] <= per_panel:
            prompts.append(prompt)
    if not any(prompt.panel == MAIN for prompt in prompts):
        raise DataError(
            f"{path} holds no evaluation prompt", "see data/quarantine/evaluation.jsonl for the reasons"
        )
    return prompts


def reachable_maximum(
    stage: Stage[EvaluateConfig], world: World, prompts: list[EvaluationPrompt], setting: Setting
) -> Floats:
    """Gold of the best of many SFT answers a prompt; shape (N,)."""
    rounds = sample_many(
        MODELS / "sft",
        prompts,
        stage.config.oracle_samples,
        setting,
        lambda done, total: stage.progress.update(done, total, {}),
    )
    scores = [gold_scores(world, prompts, r.texts, np.array(r.ended, dtype=np.bool_)) for r in rounds]
    return best_of(np.stack(scores, axis=1))


def main(policy: str) -> None:
    """Scores models/POLICY."""
    with Stage.open("evaluate", EvaluateConfig, part=policy) as stage:
        config = stage.config
        apply(stage.compute, config.threads)
        trust = read_section("compute", ComputeConfig).trust_remote_code
        setting = Setting(config, stage.compute, stage.seed, trust)
        stage.dataset("evaluation", PROMPTS)
        prompts = read_prompts(PROMPTS, config.max_prompts)
        judges = Judges.load(MODELS, prompts, setting)

        stage.say(f"answers {len(prompts)} prompts" + ("" if policy == "sft" else ", and SFT with it"))
        sampled, baseline = sample_policies(policy, MODELS, prompts, setting)
        answers = judges.scored(sampled, prompts)
        sft = answers if policy == "sft" else judges.scored(baseline, prompts)
        figures: dict[str, Any] = summarise(answers, sft, resamples=config.bootstrap)
        rows = list(answers.rows())

        if policy == "sft" and judges.world is not None and config.oracle_samples:
            world = judges.world
            main_panel = [i for i, prompt in enumerate(prompts) if prompt.panel == MAIN]
            exact = exact_maximum(world, [prompts[i] for i in main_panel])
            for i, most in zip(main_panel, exact, strict=True):
                rows[i]["exact"] = rounded(most)
            kinds = [prompts[i].kind for i in main_panel]
            asked = [main_panel[i] for i in spread_over_kinds(kinds, config.oracle_prompts)]
            stage.say(f"the best of {config.oracle_samples} SFT answers to {len(asked)} prompts")
            reachable = reachable_maximum(stage, world, [prompts[i] for i in asked], setting)
            for i, best in zip(asked, reachable, strict=True):
                rows[i]["reachable"] = rounded(best)
            figures["oracle"] = summarise_oracle(
                exact, reachable, config.oracle_samples, resamples=config.bootstrap
            )

        write_jsonl(Path("reports/samples") / f"{policy}.jsonl", rows)
        stage.metrics(figures, Path("metrics/evaluate") / f"{policy}.json")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(str(ConfigError("tasks.evaluate takes one policy", "python -m tasks.evaluate sft")))
    main(sys.argv[1])
