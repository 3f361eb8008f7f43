"""The vLLM engine against a stand-in with the interface of vLLM 0.33.0; on vLLM itself it is not run here."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prefloop.config.ppo import PPOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.config.training import LoraConfig
from prefloop.errors import ConfigError, TrainingError
from prefloop.models.adapters import attach
from prefloop.objectives.importance import mismatch
from prefloop.rollout.engine import make_engine
from prefloop.rollout.sampling import Sampler
from prefloop.rollout.vllm_engine import VLLMEngine
from prefloop.training.experience import behaviour_logprobs
from prefloop.training.passes import Passes, as_batch
from tests import tiny
from tests.rollout import fake_vllm

KEY = (0, "vllm")
PROMPTS = tiny.QUESTIONS
TOKENS = tiny.tokenizer()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[fake_vllm.LLM]:
    return fake_vllm.install(monkeypatch)


def engine_of(model: PreTrainedModel, precision: str = "fp32", **section: Any) -> Any:
    sampling = SamplingConfig(**{"max_new_tokens": 8, **section.pop("sampling", {})})
    config = PPOConfig(steps=1, engine="vllm", sampling=sampling, **section)
    return make_engine(model, TOKENS, config, precision)


def moved(model: PreTrainedModel) -> PreTrainedModel:
    """The model after what stands for an update of every trained weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.sin(torch.arange(parameter.numel())).view_as(parameter))
    return model


def gap(model: PreTrainedModel, rollouts: Any, temperature: float = 1.0) -> float:
    batch = as_batch(rollouts, int(TOKENS.pad_token_id))
    with torch.no_grad():
        own, _ = Passes("cpu", "fp32", temperature).logprobs(model, batch)
    return mismatch(own, behaviour_logprobs(rollouts, batch), batch.wanted)["mismatch_max"]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_it_samples_from_the_weights_that_were_pushed(kind: str, library: type[fake_vllm.LLM]) -> None:
    model = moved(tiny.model(TOKENS, kind=kind, layers=2))
    engine = engine_of(model, sampling={"temperature": 0.7})
    first = engine.sample(PROMPTS, KEY)
    assert gap(model, first, 0.7) < 1e-4
    assert first.versions == [0] * len(PROMPTS)
    again = engine.sample(PROMPTS, KEY)
    assert again == first
    moved(model)
    stale = engine.sample(PROMPTS, KEY)
    assert stale == first
    assert gap(model, stale, 0.7) > 0.01
    engine.update(model, 4)
    fresh = engine.sample(PROMPTS, KEY)
    assert gap(model, fresh, 0.7) < 1e-4
    assert fresh.versions == [4] * len(PROMPTS)
    engine.close()
    sampling = ["wake_up", "generate", "sleep"]
    pushing = ["reload_weights", "reset_prefix_cache"]
    expected = [*pushing, *sampling[1:], *sampling, *sampling, "wake_up", *pushing, *sampling[1:]]
    assert library.made[0].calls == ["LLM", *expected, "shutdown"]


def test_an_adapter_is_pushed_folded_in(library: type[fake_vllm.LLM]) -> None:
    policy = attach(tiny.model(TOKENS), LoraConfig(rank=2, alpha=4.0), seed=0)
    engine = engine_of(policy)
    moved(policy)
    engine.update(policy, 1)
    assert gap(policy, engine.sample(PROMPTS, KEY)) < 1e-4


def test_it_reads_the_prompts_of_the_built_in_engine_and_ends_where_it_does(
    library: type[fake_vllm.LLM],
) -> None:
    model = tiny.model(TOKENS)
    engine = engine_of(model)
    end = TOKENS.eos_token_id
    engine.encoder.stops = [end, *range(30)]  # so that many completions end
    prompts = [*PROMPTS, [{"role": "user", "content": "The kettle. " * 40}]]
    rollouts = engine.sample(prompts, KEY)
    expected = Sampler(model, TOKENS, SamplingConfig(max_new_tokens=8)).sample(prompts, KEY)
    assert rollouts.prompt_ids == expected.prompt_ids
    assert set(rollouts.ended) == {True, False}
    for ids, ended in zip(rollouts.completion_ids, rollouts.ended, strict=True):
        assert ended == (ids[-1] in engine.encoder.stops)
        assert not set(ids[:-1]) & set(engine.encoder.stops)
        assert ended or len(ids) == 8
    assert rollouts.texts == [TOKENS.decode(ids, skip_special_tokens=True) for ids in rollouts.completion_ids]
    assert [len(row) for row in rollouts.logprobs] == rollouts.lengths


def test_a_draw_is_keyed_by_prompt_and_sample(library: type[fake_vllm.LLM]) -> None:
    engine = engine_of(tiny.model(TOKENS))
    rows = [(3, 0), (3, 1), (5, 0)]
    asked = [PROMPTS[3], PROMPTS[3], PROMPTS[5]]
    together = engine.sample(asked, KEY, rows)
    assert together.completion_ids[0] != together.completion_ids[1]
    apart = engine.sample([PROMPTS[5], PROMPTS[3]], KEY, [(5, 0), (3, 1)])
    assert apart.completion_ids == [together.completion_ids[2], together.completion_ids[1]]
    assert engine.sample(asked, (1, "vllm"), rows).completion_ids != together.completion_ids


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_it_starts_as_the_section_says(precision: str, dtype: str, library: type[fake_vllm.LLM]) -> None:
    engine_of(tiny.model(TOKENS), precision, engine_memory=0.25)
    given = library.made[0].given
    assert given["dtype"] == dtype
    assert given["gpu_memory_utilization"] == 0.25
    assert given["max_model_len"] == 64
    # Log-probs at the temperature of sampling; no end tokens or temperatures of a model folder.
    assert given["logprobs_mode"] == "processed_logprobs"
    assert given["generation_config"] == "vllm"


def test_without_vllm_the_extra_is_named(library: type[fake_vllm.LLM], monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="vLLM cannot be imported") as caught:
        engine_of(tiny.model(TOKENS))
    assert "prefloop[vllm]" in caught.value.remedy


def test_without_a_gpu_it_is_refused(library: type[fake_vllm.LLM], monkeypatch: Any) -> None:
    monkeypatch.setattr("prefloop.rollout.vllm_engine.torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA GPU") as caught:
        engine_of(tiny.model(TOKENS))
    assert "engine to built_in" in caught.value.remedy


def test_what_keeps_vllm_from_starting_is_told(library: type[fake_vllm.LLM]) -> None:
    with pytest.raises(ConfigError, match="1 validation error Free memory on device is less") as caught:
        engine_of(tiny.model(TOKENS), engine_memory=0.95)
    assert "engine_memory" in caught.value.remedy


def test_a_temperature_that_vllm_would_raise_is_refused(library: type[fake_vllm.LLM]) -> None:
    with pytest.raises(ConfigError, match=r"no temperature below 0.01"):
        engine_of(tiny.model(TOKENS), sampling={"temperature": 0.005})


def test_a_completion_that_fills_the_context_is_refused(library: type[fake_vllm.LLM]) -> None:
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        engine_of(tiny.model(TOKENS), sampling={"max_new_tokens": 64})


def test_a_request_that_vllm_gave_up_stops_the_training(library: type[fake_vllm.LLM]) -> None:
    engine = engine_of(tiny.model(TOKENS))
    library.finish = "abort"
    with pytest.raises(TrainingError, match=r"finished 0 of 6 completions \(abort\)"):
        engine.sample(PROMPTS, KEY)


@pytest.mark.parametrize("call", ["generate", "wake_up", "collective_rpc"])
def test_memory_that_vllm_lacks_stops_the_training(
    call: str, library: type[fake_vllm.LLM], monkeypatch: Any
) -> None:
    model = tiny.model(TOKENS)
    engine = engine_of(model)
    engine.sample(PROMPTS, KEY)

    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(library, call, full)
    sample, update = partial(engine.sample, PROMPTS, KEY), partial(engine.update, model, 1)
    failing = update if call == "collective_rpc" else sample
    # Fewer requests at once would not help: the trainer must not try.
    with pytest.raises(TrainingError, match="vLLM ran out of memory") as caught:
        failing()
    assert "engine_memory" in caught.value.remedy


def test_a_cache_that_stays_stops_the_training(library: type[fake_vllm.LLM], monkeypatch: Any) -> None:
    model = tiny.model(TOKENS)
    engine = engine_of(model)
    monkeypatch.setattr(library, "reset_prefix_cache", lambda self: False)
    with pytest.raises(TrainingError, match="cache of the old weights"):
        engine.update(model, 1)
    assert engine.version == 0


def test_it_is_an_engine(library: type[fake_vllm.LLM]) -> None:
    assert isinstance(engine_of(tiny.model(TOKENS)), VLLMEngine)
