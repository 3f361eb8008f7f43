"""A policy's way through training: at each look how far from SFT it was, and what judges think of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.rollout import SamplingConfig
from prefloop.errors import DataError
from prefloop.evaluation.answering import Sampled, Setting, completion_logprobs
from prefloop.evaluation.answers import Answers, EvaluationPrompt, paired
from prefloop.evaluation.gold import gold_score
from prefloop.evaluation.intervals import Floats, bootstrap_mean, rounded
from prefloop.evaluation.kl import kl_to_sft
from prefloop.evaluation.reward import judge_score, reward_score
from prefloop.files import read_jsonl
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.training.noise import Key


@dataclass(frozen=True, eq=False)
class Trail:
    """What a policy answered on its way, to the same N prompts at each look.

    Attributes:
        policy: its name.
        prompts, noise: N of each; the noise is the whole key of a draw.
        sampling: how it answered.
        looks: 1-based step, texts and tokens of the answers after it (not the prompts' tokens), and their
            log-probs under the policy then: (N,) float64, nats.
    """

    policy: str
    prompts: tuple[EvaluationPrompt, ...]
    noise: tuple[Key, ...]
    sampling: SamplingConfig
    looks: tuple[tuple[int, Rollouts, Floats], ...]


def read_trail(policy: str, path: Path, prompts: Mapping[str, EvaluationPrompt]) -> Trail | None:
    """What reports/looks/POLICY.jsonl holds; None where it has no row that is asked for.

    Args:
        prompts: by id; answers to others are left out.

    Raises:
        DataError: the file is missing or no JSON Lines, or its looks are at different prompts.
    """
    looks: dict[int, list[dict[str, Any]]] = {}
    for row in read_jsonl(path):
        if row["id"] in prompts:
            looks.setdefault(row["step"], []).append(row)
    if not looks:
        return None
    first = next(iter(looks.values()))
    if any([row["noise"] for row in rows] != [row["noise"] for row in first] for rows in looks.values()):
        raise DataError(f"{path} looks at different prompts at different steps", "run its stage again")
    return Trail(
        policy,
        tuple(prompts[row["id"]] for row in first),
        tuple(tuple(row["noise"]) for row in first),
        SamplingConfig(**first[0]["sampling"]),
        tuple(
            (
                step,
                Rollouts(
                    completion_ids=[row["completion_ids"] for row in rows],
                    texts=[row["completion"] for row in rows],
                    ended=[row["ended"] for row in rows],
                ),
                np.array([row["logprob"] for row in rows], dtype=np.float64),
            )
            for step, rows in sorted(looks.items())
        ),
    )


class FromSFT:
    """What the SFT policy has to say of trails: its own answers, and how likely it finds the others'.

    Args:
        model, tokenizer: the SFT policy. setting: batch size, device and precision.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, setting: Setting) -> None:
        self.model, self.tokenizer, self.setting = model, tokenizer, setting
        self._own: dict[tuple[Any, ...], Rollouts] = {}

    def start(self, trail: Trail) -> Sampled:
        """Its answers to the trail's prompts, drawn with the trail's noise; sampled once for equal ones."""
        same = (trail.noise, tuple(prompt.id for prompt in trail.prompts), trail.sampling)
        if same not in self._own:
            asked = [prompt.prompt for prompt in trail.prompts]
            self._own[same] = self._sampler(trail).sample(
                asked, (), trail.noise, batch_size=self.setting.config.batch_size
            )
        return Sampled("sft", self._own[same], np.zeros(len(trail.prompts)))

    def looks(self, trail: Trail) -> list[Sampled]:
        """The trail's answers with their log-ratios to it, look by look."""
        encoder, room = self._sampler(trail).encoder, trail.sampling.max_new_tokens
        prompt_ids = [encoder.prompt(prompt.prompt, room) for prompt in trail.prompts]
        config = replace(self.setting.config, sampling=trail.sampling)
        setting = replace(self.setting, config=config)
        found = []
        for _, rollouts, own in trail.looks:
            whole = replace(rollouts, prompt_ids=prompt_ids)
            theirs = completion_logprobs(self.model, self.tokenizer, whole, setting)
            found.append(Sampled(trail.policy, whole, own - theirs))
        return found

    def _sampler(self, trail: Trail) -> Sampler:
        return Sampler(self.model, self.tokenizer, trail.sampling, self.setting.environment.precision)


def start_figures(sft: Answers, *, resamples: int = 2000) -> dict[str, Any]:
    """What judges think of SFT's answers, where every trail begins: `n`, `gold`, `judge_score`, `reward`."""
    gold = gold_score(sft, resamples=resamples)
    return {
        "n": len(sft),
        "gold": None if gold is None else gold.as_json(),
        "judge_score": judge_score(sft, resamples=resamples).as_json(),
        "reward": reward_score(sft, resamples=resamples).as_json(),
    }


def look_figures(step: int, answers: Answers, sft: Answers, *, resamples: int = 2000) -> dict[str, Any]:
    """The same of one look, with its `step`, its `kl` to SFT (nats a response), and `judge_gain` and
    `reward_gain`: by how much its answers beat SFT's to the same prompts.

    Raises:
        DataError: the two did not answer the same prompts.
    """
    paired(answers, sft)
    kl = kl_to_sft(answers, resamples=resamples)
    return {
        **start_figures(answers, resamples=resamples),
        "step": step,
        "kl": rounded(kl.mean),
        "kl_ci95": kl.as_json()["ci95"],
        "judge_gain": bootstrap_mean(answers.judge - sft.judge, resamples=resamples).as_json(),
        "reward_gain": bootstrap_mean(answers.reward - sft.reward, resamples=resamples).as_json(),
    }


def trail_figures(
    steps: Sequence[int], looks: Sequence[Answers], sft: Answers, *, resamples: int = 2000
) -> dict[str, Any]:
    """A policy's part of metrics/looks.json: `sft`, and `looks` by step."""
    return {
        "sft": start_figures(sft, resamples=resamples),
        "looks": {
            str(step): look_figures(step, answers, sft, resamples=resamples)
            for step, answers in zip(steps, looks, strict=True)
        },
    }
