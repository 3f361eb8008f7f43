"""Stands in for the package vllm: what the engine uses of it, with the names that vLLM declares.

`DECLARED` is taken from the sources of vLLM 0.33.0 (entrypoints/llm.py, engine/arg_utils.py,
sampling_params.py, v1/worker/gpu_model_runner.py), and 0.22.1 declares the same. A name that is not in it is
refused, as vLLM would. How it samples is its own: without cache or batch, with a torch generator of each
request's seed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

DECLARED = {
    "LLM": {
        "model", "tokenizer", "load_format", "dtype", "max_model_len", "gpu_memory_utilization",
        "enable_prefix_caching", "enable_sleep_mode", "logprobs_mode", "generation_config", "seed",
        "enforce_eager", "trust_remote_code", "worker_extension_cls", "weight_transfer_config",
    },
    "SamplingParams": {
        "n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos",
        "max_tokens", "min_tokens", "logprobs", "detokenize", "skip_special_tokens", "output_kind",
    },
    "TokensPrompt": {"prompt_token_ids", "prompt", "cache_salt"},
    "reload_weights": {"weights_iterator", "weights_path", "is_checkpoint_format"},
}  # fmt: skip


def declared(what: str, given: Iterable[str]) -> None:
    unknown = set(given) - DECLARED[what]
    if unknown:
        raise TypeError(f"{what} got unexpected arguments {sorted(unknown)}")


class SamplingParams:
    def __init__(self, **given: Any) -> None:
        declared("SamplingParams", given)
        if not 0 < given["top_p"] <= 1:
            raise ValueError("top_p must be in (0, 1]")
        assert -(2**63) <= given["seed"] < 2**63
        self.__dict__.update(given)


def TokensPrompt(**given: Any) -> dict[str, Any]:  # a TypedDict there
    declared("TokensPrompt", given)
    return given


class LLM:
    """One model on the CPU; `calls` are the methods called, in order."""

    made: list[LLM] = []  # noqa: RUF012
    finish: str | None = None
    """Finish reason of every request, where a test wants one."""

    def __init__(self, model: str, **given: Any) -> None:
        declared("LLM", given)
        if given["gpu_memory_utilization"] > 0.9:
            raise ValueError("1 validation error\n  Free memory on device is less than desired")
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0", "tensors could not pass"
        folder = Path(model)
        self.given, self.calls, self.asleep = given, ["LLM"], False
        config = AutoConfig.from_pretrained(folder)
        assert config.architectures == [type(AutoModelForCausalLM.from_config(config)).__name__]
        AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in self.model.parameters():
            torch.nn.init.constant_(parameter, 7.0)  # "dummy"
        self.cached = True
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shutdown))
        LLM.made.append(self)

    def _shutdown(self, timeout: float | None = None) -> None:
        self.calls.append("shutdown")

    def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple = (), kwargs: dict | None = None
    ) -> list[None]:
        assert method == "reload_weights"
        assert not self.asleep
        declared(method, kwargs or {})
        self.calls.append(method)
        found = self.model.load_state_dict(dict((kwargs or {})["weights_iterator"]), strict=False)
        assert not found.unexpected_keys
        tied = {"lm_head.weight"} if self.model.config.tie_word_embeddings else set()
        assert set(found.missing_keys) <= tied
        self.cached = True
        return [None]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.calls.append("reset_prefix_cache")
        self.cached = False
        return True

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        assert level == 1, "at level 2 the weights are gone"
        self.calls.append("sleep")
        self.asleep = True

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.calls.append("wake_up")
        self.asleep = False

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: Any = True) -> list[Any]:
        assert not self.asleep
        assert not self.cached, "the cache is of other weights"
        self.calls.append("generate")
        asked = zip(prompts, sampling_params, strict=True)
        return [self._answer(prompt["prompt_token_ids"], params) for prompt, params in asked]

    @torch.no_grad()
    def _answer(self, prompt: list[int], params: SamplingParams) -> Any:
        assert params.logprobs == 0
        assert params.ignore_eos
        generator = torch.Generator().manual_seed(params.seed)
        ids: list[int] = []
        said: list[dict[int, Any]] = []
        reason = "length"
        for _ in range(params.max_tokens):
            logits = self.model(torch.tensor([prompt + ids])).logits[0, -1] / params.temperature
            chosen: Tensor = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids.append(int(chosen))
            said.append({ids[-1]: SimpleNamespace(logprob=float(logits.log_softmax(-1)[chosen]), rank=1)})
            if ids[-1] in params.stop_token_ids:
                reason = "stop"
                break
        output = SimpleNamespace(token_ids=ids, logprobs=said, finish_reason=LLM.finish or reason, text="")
        return SimpleNamespace(outputs=[output], finished=True)


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Makes this the package vllm, on a machine that seems to have a GPU."""
    monkeypatch.setitem(sys.modules, "vllm", sys.modules[__name__])
    monkeypatch.setattr("prefloop.rollout.vllm_engine.torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.setattr(LLM, "finish", None)
    return LLM
