"""transformers' `generate` on given prompts, as it comes and with what makes it fastest."""

from __future__ import annotations

import time
from typing import Any

import torch
import transformers
from clock import Clock
from recording import answer_jobs
from transformers import AutoModelForCausalLM, AutoTokenizer

Setting = tuple[int, bool, str]
"""Prompts at once (0: all), whether prompts of similar length go together, the cache's implementation."""

AS_IT_COMES: Setting = (0, False, "")
TRIED: tuple[Setting, ...] = (
    (0, False, ""),
    (0, True, ""),
    (128, True, ""),
    (64, True, ""),
    (32, True, ""),
    (64, True, "static"),
)
"""What is tried where it is tuned, once each; the fastest is timed, in another process."""


class Generating:
    """A model and the prompts that it continues."""

    def __init__(self, job: dict[str, Any], clock: Clock) -> None:
        self.job, self.device = job, clock.device
        self.bf16 = job["precision"] == "bf16"
        model = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32)
        self.model = model.to(self.device).eval()
        tokenizer = AutoTokenizer.from_pretrained(job["policy"])
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id

    def all(self, setting: Setting) -> list[list[int]]:
        """A completion of each prompt, the end token included."""
        size, by_length, cache = setting
        prompts = self.job["tokens"]
        order = list(range(len(prompts)))
        if by_length:
            order.sort(key=lambda i: len(prompts[i]))
        found: dict[int, list[int]] = {}
        for start in range(0, len(order), size or len(order)):
            group = order[start : start + (size or len(order))]
            for i, ids in zip(group, self.some([prompts[i] for i in group], cache), strict=True):
                found[i] = ids
        return [found[i] for i in range(len(prompts))]

    @torch.no_grad()
    def some(self, prompts: list[list[int]], cache: str) -> list[list[int]]:
        """Completions of one batch, padded on the left."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self.job["longest"],
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                **({"cache_implementation": cache} if cache else {}),
            )
        rows = output[:, width:].tolist()
        return [row[: row.index(self.end) + 1] if self.end in row else row for row in rows]


class Sampled(Clock):
    """A clock that keeps the last completions, and says which setting was timed."""

    def __init__(self) -> None:
        super().__init__()
        self.completions_made: list[list[int]] = []
        self.setting: Setting = AS_IT_COMES

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"completions": self.completions_made, "setting": self.setting}


def train(job: dict[str, Any]) -> Clock:
    """Samples all responses, several times, in the job's setting; of "tune", finds the fastest one."""
    clock = Sampled()
    torch.manual_seed(0)
    generating = Generating(job, clock)
    if job["setting"] == "tune":
        clock.setting = fastest(generating)
        return clock
    clock.setting = tuple(job["setting"]) or AS_IT_COMES
    with clock.watching(generating.model):
        clock.step()
        for _ in range(job["repeats"]):
            made = generating.all(clock.setting)
            clock.step()
            clock.completions(float(sum(map(len, made))))
            clock.completions_made = made
    return clock


def fastest(generating: Generating) -> Setting:
    """The setting that gives most tokens a second; one that fails is not it."""
    rates: dict[Setting, float] = {}
    for setting in TRIED:
        started = time.perf_counter()
        try:
            tokens = sum(map(len, generating.all(setting)))
        except (RuntimeError, ValueError, NotImplementedError) as error:
            print(f"{setting}: {error}", flush=True)
            continue
        rates[setting] = tokens / (time.perf_counter() - started)
        print(f"{setting}: {rates[setting]:.0f} tokens/s", flush=True)
    return max(rates, key=lambda setting: rates[setting])


if __name__ == "__main__":
    answer_jobs(train, {"torch": torch.__version__, "transformers": transformers.__version__})
