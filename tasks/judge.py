"""The stage judge: who decides win rates, never the reward model under optimisation."""

from __future__ import annotations

from pathlib import Path

from prefloop.config.judge import JudgeConfig
from prefloop.files import atomic_folder, write_json
from tasks.support.reward_fitting import fit
from tasks.support.stage import Stage

COMPARISONS = Path("data/validated/judge.jsonl")
PROMPTS = Path("data/validated/prompts.jsonl")


def main() -> None:
    """Writes models/judge: a reward model fitted on prompts of its own, or the word that gold judges."""
    with Stage.open("judge", JudgeConfig) as stage:
        kind = stage.config.kind
        if kind == "gold":
            with atomic_folder("models/judge") as folder:
                write_json(folder / "judge.json", {"kind": kind})
            stage.metrics({"kind": kind})
            return
        model, figures = fit(stage, COMPARISONS, PROMPTS, Path("models/sft"))
        with stage.output("models/judge") as folder:
            model.save(folder)
            write_json(folder / "judge.json", {"kind": kind})
        stage.metrics({"kind": kind, **figures})


if __name__ == "__main__":
    main()
