"""What an engine says of the tokens it drew: the trainer's own log-probs, up to rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.config.parse import parse
from prefloop.config.ppo import PPOConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.errors import ConfigError
from prefloop.objectives.importance import mismatch
from prefloop.rollout.drawing import draw, draw_with_logprobs
from prefloop.rollout.engine import Engine, make_engine
from prefloop.rollout.sampling import Rollouts, Sampler
from prefloop.training.experience import behaviour_logprobs
from prefloop.training.noise import uniforms
from prefloop.training.passes import Passes, as_batch
from tests import tiny

KEY = (0, "engine")
PROMPTS = [*tiny.QUESTIONS, "a", "Is the kettle that stands beside the lamp blue, or is it red?"]


def sharp(kind: str) -> PreTrainedModel:
    """Far from uniform, so that a wrong position or temperature shows."""
    model = tiny.model(tiny.tokenizer(), kind=kind, layers=2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter *= 4
    return model


def both(model: PreTrainedModel, precision: str, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of sampled tokens as the trainer computes them, as the sampler had them, and their mask."""
    tokens = tiny.tokenizer()
    config = SamplingConfig(max_new_tokens=12, temperature=temperature)
    engine = Sampler(model, tokens, config, precision)
    engine.stops = torch.arange(40)  # many tokens end a completion, so that rows leave the batch
    rollouts = engine.sample(PROMPTS * 2, KEY)
    assert len(set(rollouts.lengths)) > 2
    assert [len(row) for row in rollouts.logprobs] == rollouts.lengths
    batch = as_batch(rollouts, int(tokens.pad_token_id))
    with torch.no_grad():
        own, _ = Passes("cpu", precision, temperature).logprobs(model, batch)
    return own, behaviour_logprobs(rollouts, batch), batch.wanted


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_recorded_log_probs_are_those_that_the_trainer_computes(kind: str, temperature: float) -> None:
    model = sharp(kind)
    own, said, mask = both(model, "fp32", temperature)
    assert not said[~mask].any()
    assert float(said[mask].min()) < -2
    torch.testing.assert_close(said, own, atol=1e-4, rtol=0)
    exact = mismatch(own, said, mask)
    assert exact["mismatch_max"] < 1e-4
    assert 0 < exact["mismatch_kl"] < 1e-9
    rounded = mismatch(*both(model, "bf16", temperature))
    assert exact["mismatch_max"] < rounded["mismatch_max"] < 1.0
    # Of a small log-ratio d, k3 is d^2 / 2.
    assert rounded["mismatch_mean"] ** 2 / 2 < rounded["mismatch_kl"] < rounded["mismatch_max"] ** 2 / 2


def test_a_log_prob_is_that_of_the_whole_distribution_at_the_temperature() -> None:
    # p = softmax(log [8, 4, 2, 2] / 1/2) = [64, 16, 4, 4] / 88; of it top_p 0.6 keeps the first token alone.
    logits = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log().expand(2, -1)
    noise = torch.tensor([0.0, 0.99], dtype=torch.float64)
    for top_p, expected in ((1.0, [0, 3]), (0.6, [0, 0])):
        tokens, logprobs = draw_with_logprobs(logits, noise, SamplingConfig(temperature=0.5, top_p=top_p))
        assert tokens.tolist() == expected
        known = np.log(np.array([64, 16, 4, 4]) / 88)[expected]
        np.testing.assert_allclose(logprobs.numpy(), known, rtol=1e-6)
    tokens, logprobs = draw_with_logprobs(logits, noise, SamplingConfig(temperature=0.0))
    assert tokens.tolist() == [0, 0]
    assert logprobs.tolist() == [0, 0]


def test_log_probs_change_no_draw() -> None:
    logits = torch.from_numpy(uniforms(KEY, [(i,) for i in range(200)], 50).numpy()).float() * 12
    noise = uniforms((*KEY, "noise"), [(i,) for i in range(200)], 1)[:, 0]
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.0, 0.8)):
        config = SamplingConfig(temperature=temperature, top_p=top_p)
        # The draw as it was before log-probs were recorded.
        probabilities = torch.softmax(logits.double() / temperature, dim=-1)
        if top_p < 1:
            ordered, indices = probabilities.sort(dim=-1, descending=True, stable=True)
            outside = ordered.cumsum(dim=-1) - ordered >= top_p
            kept = ordered.masked_fill(outside, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, indices, kept)
        cumulative = probabilities.cumsum(dim=-1)
        target = noise.unsqueeze(-1) * cumulative[:, -1:]
        before = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=49)
        assert len(before.unique()) > 10
        assert torch.equal(draw(logits, noise, config), before)


def test_a_rollout_knows_which_weights_wrote_it() -> None:
    tokens = tiny.tokenizer()
    model = tiny.model(tokens)
    engine: Engine = Sampler(model, tokens, SamplingConfig(max_new_tokens=4))
    rollouts = engine.sample(PROMPTS[:2], KEY)
    engine.update(model, 3)
    rollouts.extend(engine.sample(PROMPTS[:1], KEY, [(7,)]))
    assert rollouts.versions == [0, 0, 3]
    assert len(rollouts.logprobs) == len(rollouts.completion_ids) == 3
    engine.close()


def test_log_probs_lie_beside_their_tokens() -> None:
    rollouts = Rollouts([[5, 6, 7], [5]], [[8], [9, 10]], ["", ""], [True, True], [[-1.0], [-2.0, -3.0]])
    batch = as_batch(rollouts, 0)
    assert behaviour_logprobs(rollouts, batch).tolist() == [[0, 0, 0, -1], [0, -2, -3, 0]]


def test_the_built_in_engine_is_the_default() -> None:
    tokens = tiny.tokenizer()
    model = tiny.model(tokens)
    config = PPOConfig(steps=1, sampling=SamplingConfig(max_new_tokens=4))
    engine = make_engine(model, tokens, config)
    assert isinstance(engine, Sampler)
    assert engine.model is model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "vlm"}, "vllm"),
        ({"engine_memory": 0.0}, "engine_memory must be more than 0"),
        ({"engine_memory": 1.5}, "engine_memory must lie between 0 and 1"),
        ({"importance_cap": -1.0}, "importance_cap must be at least 0"),
    ],
)
def test_a_section_that_asks_for_no_such_engine_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(PPOConfig, {"steps": 1, **values}, "ppo")
    assert message in f"{caught.value.message} {caught.value.remedy}"
