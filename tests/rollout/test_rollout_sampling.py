"""The sampler against one written out plainly, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prefloop.config.rollout import SamplingConfig
from prefloop.errors import ConfigError
from prefloop.models.forward import positions, token_logprobs
from prefloop.rollout import sampling
from prefloop.rollout.drawing import draw
from prefloop.rollout.sampling import Rollouts, Sampler, compacted, rows_for
from prefloop.training.noise import uniforms
from tests import tiny

KEY = (0, "test", 3)
PROMPTS = [*tiny.QUESTIONS, "a", "Is the kettle that stands beside the lamp blue, or is it red?"]
MANY = PROMPTS * 6
"""More rows than a batch keeps to its end."""
ROOM = 12


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text"])
def policy(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    tokens = tiny.tokenizer()
    model = tiny.model(tokens, kind=request.param, layers=2)
    with torch.no_grad():
        # Far from uniform, so that a wrong position or mask shows.
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter *= 4
    return model, tokens


def plainly(
    model: PreTrainedModel,
    tokens: PreTrainedTokenizerFast,
    prompt: str,
    noise: np.ndarray,
    config: SamplingConfig,
) -> list[int]:
    """One token at a time: no cache, no padding, no batch."""
    text = tokens.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokens(text, add_special_tokens=False)["input_ids"]
    written: list[int] = []
    for step in range(config.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([[*ids, *written]])).logits[0, -1].double()
        probabilities = torch.softmax(logits / config.temperature, dim=-1).numpy()
        written.append(int(np.searchsorted(np.cumsum(probabilities), noise[step], side="right")))
        if written[-1] == tokens.eos_token_id:
            break
    return written


def test_the_sampler_writes_what_the_plain_one_does(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    config = SamplingConfig(max_new_tokens=ROOM, temperature=0.7)
    model, tokens = policy
    rollouts = Sampler(model, tokens, config).sample(PROMPTS, KEY)
    for i, prompt in enumerate(PROMPTS):
        noise = uniforms(KEY, [(i,)], ROOM)[0].numpy()
        expected = plainly(model, tokens, prompt, noise, config)
        assert rollouts.completion_ids[i] == expected
        assert rollouts.ended[i] == (expected[-1] == tokens.eos_token_id)
        assert len(expected) == ROOM or rollouts.ended[i]
        assert tokens.eos_token not in rollouts.texts[i]


def completions(rollouts: Rollouts, order: list[int]) -> dict[int, tuple[list[int], bool]]:
    return {i: (rollouts.completion_ids[n], rollouts.ended[n]) for n, i in enumerate(order)}


def test_tokens_do_not_depend_on_the_batch(policy: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    sampler = Sampler(*policy, SamplingConfig(max_new_tokens=ROOM))
    # Many tokens end a completion here, so that rows leave the batch at different steps.
    sampler.stops = torch.arange(40)
    everything = list(range(len(MANY)))
    together = completions(sampler.sample(MANY, KEY, batch_size=64), everything)
    alone = completions(sampler.sample(MANY, KEY, batch_size=1), everything)
    some = [5, 0, 37]
    apart = completions(
        sampler.sample([MANY[i] for i in some], KEY, [(i,) for i in some], batch_size=2), some
    )
    assert together == alone
    assert apart == {i: together[i] for i in some}
    assert any(ended for _, ended in together.values())
    lengths = {len(ids) for ids, _ in together.values()}
    assert len(lengths) > 1


def test_rows_that_ended_change_nothing_by_leaving(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(*policy, SamplingConfig(max_new_tokens=ROOM))
    sampler.stops = torch.arange(40)
    sizes = list[int]()

    def counted(running: torch.Tensor, size: int) -> torch.Tensor:
        sizes.append(size)
        return compacted(running, size)

    monkeypatch.setattr(sampling, "compacted", counted)
    leaving = sampler.sample(MANY, KEY)
    assert sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) > 1
    sizes.clear()
    monkeypatch.setattr(sampling, "rows_for", lambda count: len(MANY))
    assert sampler.sample(MANY, KEY).completion_ids == leaving.completion_ids
    assert not sizes


def test_batches_shrink_to_few_sizes() -> None:
    sizes = [rows_for(count) for count in range(1, 257)]
    assert sorted(set(sizes)) == [16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256]
    assert all(size >= count for count, size in enumerate(sizes, start=1))


@settings(deadline=None)
@given(st.integers(min_value=16, max_value=2**40))
def test_a_batch_has_at_most_a_quarter_of_rows_in_vain(count: int) -> None:
    assert count <= rows_for(count) <= count * 5 / 4
    assert rows_for(rows_for(count)) == rows_for(count)


def test_another_key_draws_other_tokens(policy: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> None:
    sampler = Sampler(*policy, SamplingConfig(max_new_tokens=ROOM))
    assert sampler.sample(PROMPTS, KEY).texts == sampler.sample(PROMPTS, KEY).texts
    assert sampler.sample(PROMPTS, KEY).texts != sampler.sample(PROMPTS, (1, "test", 3)).texts
    twice = sampler.sample([PROMPTS[0]] * 2, KEY, [(0, 0), (0, 1)])
    assert twice.completion_ids[0] != twice.completion_ids[1]


def test_log_probs_are_those_of_a_full_forward_pass(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    model, tokens = policy
    rollouts = Sampler(model, tokens, SamplingConfig(max_new_tokens=ROOM)).sample(PROMPTS, KEY)
    sequences = [p + c for p, c in zip(rollouts.prompt_ids, rollouts.completion_ids, strict=True)]
    width = max(map(len, sequences)) + 3
    for left in (False, True):
        ids = torch.full((len(sequences), width), int(tokens.pad_token_id))
        attention, wanted = torch.zeros(2, *ids.shape, dtype=torch.bool)
        for i, sequence in enumerate(sequences):
            start = width - len(sequence) if left else 0
            ids[i, start : start + len(sequence)] = torch.tensor(sequence)
            attention[i, start : start + len(sequence)] = True
            wanted[i, start + len(rollouts.prompt_ids[i]) : start + len(sequence)] = True
        with torch.no_grad():
            logprobs, entropy = token_logprobs(
                model, ids, attention, wanted, temperature=0.7, with_entropy=True
            )
        assert not logprobs[~wanted].any()
        for i, sequence in enumerate(sequences):
            with torch.no_grad():
                logits = model(torch.tensor([sequence])).logits[0] / 0.7
            expected = torch.log_softmax(logits, dim=-1)
            at = range(len(rollouts.prompt_ids[i]), len(sequence))
            own = torch.stack([expected[t - 1, sequence[t]] for t in at])
            torch.testing.assert_close(logprobs[i][wanted[i]], own, atol=2e-5, rtol=1e-4)
            spread = torch.stack([-(expected[t - 1].exp() * expected[t - 1]).sum() for t in at])
            torch.testing.assert_close(entropy[i][wanted[i]], spread, atol=2e-5, rtol=1e-4)


def test_greedy_takes_the_most_likely_token() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 1.0, 0.0]])
    noise = torch.tensor([0.999, 0.999], dtype=torch.float64)
    assert draw(logits, noise, SamplingConfig(temperature=0.0)).tolist() == [1, 0]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.75)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    logits = torch.tensor([1.0, 0.0, 2.0, -1.0, 0.5])
    probabilities = np.exp(np.array([1.0, 0.0, 2.0, -1.0, 0.5]) / temperature)
    probabilities /= probabilities.sum()
    if top_p < 1:
        # Token 2 (0.563) is below 0.75 and token 0 (0.207) crosses it; the others are out.
        probabilities[[1, 3, 4]] = 0
        probabilities /= probabilities.sum()
    size = 20_000
    noise = uniforms((0, "chi-square"), [(0,)], size)[0]
    config = SamplingConfig(temperature=temperature, top_p=top_p)
    drawn = draw(logits.expand(size, -1), noise, config)
    counts = np.bincount(drawn.numpy(), minlength=5)
    possible = probabilities > 0
    assert not counts[~possible].any()
    expected = size * probabilities[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    # The 99.9 % quantile of chi-square at 4 degrees of freedom.
    assert statistic < 18.47


@settings(max_examples=50)
@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=8),
    st.floats(0, 1, exclude_max=True),
    st.floats(0.01, 1),
)
def test_a_drawn_token_is_always_a_possible_one(logits: list[float], noise: float, top_p: float) -> None:
    row = torch.tensor([logits])
    config = SamplingConfig(top_p=top_p)
    token = int(draw(row, torch.tensor([noise], dtype=torch.float64), config))
    probabilities = torch.softmax(row[0].double(), dim=-1)
    ahead = probabilities[probabilities > probabilities[token]].sum().item()
    assert 0 <= token < len(logits)
    assert ahead < top_p + 1e-9


def test_positions_count_from_the_first_real_token() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_a_prompt_longer_than_the_context_keeps_its_end() -> None:
    tokens = tiny.tokenizer()
    sampler = Sampler(tiny.model(tokens), tokens, SamplingConfig(max_new_tokens=ROOM))
    rollouts = sampler.sample(["The kettle. " * 40], KEY)
    assert len(rollouts.prompt_ids[0]) == 64 - ROOM
    assert tokens.decode(rollouts.prompt_ids[0]).endswith("kettle. <|end|><|assistant|>")
    assert sampler.encoder.cut == 1


def test_a_completion_that_fills_the_context_is_refused() -> None:
    tokens = tiny.tokenizer()
    with pytest.raises(ConfigError, match="leaves no room for a prompt"):
        Sampler(tiny.model(tokens), tokens, SamplingConfig(max_new_tokens=64))
