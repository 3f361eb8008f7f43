"""One token a row, against the inversion written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.config.rollout import SamplingConfig
from prefloop.rollout.drawing import BLOCK, draw, draw_with_logprobs


@given(
    st.integers(1, 300),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.integers(0, 99),
)
@settings(max_examples=200, deadline=None)
def test_it_is_the_inversion_of_the_whole_running_sum(
    vocabulary: int, noise: float, temperature: float, seed: int
) -> None:
    logits = 3 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed))
    token, logprob = draw_with_logprobs(
        logits, torch.tensor([noise], dtype=torch.float64), SamplingConfig(temperature=temperature)
    )
    logs = torch.log_softmax(logits[0].double() / temperature, dim=-1).numpy()
    summed = np.cumsum(np.exp(logs))
    before = summed[int(token) - 1] if int(token) else 0.0
    assert before - 1e-6 <= noise * summed[-1] <= summed[int(token)] + 1e-6
    assert logprob.item() == pytest.approx(logs[int(token)], abs=1e-5)
    assert logprob.dtype == torch.float64


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 65, 640])
def test_a_token_without_mass_is_never_drawn(vocabulary: int) -> None:
    logits = torch.full((4, vocabulary), -torch.inf)
    only = torch.tensor([0, vocabulary // 3, vocabulary // 2, vocabulary - 1])
    logits[torch.arange(4), only] = 0.0
    for noise in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        drawn, logprobs = draw_with_logprobs(
            logits, torch.full((4,), noise, dtype=torch.float64), SamplingConfig()
        )
        assert drawn.tolist() == only.tolist()
        assert logprobs.tolist() == [0.0] * 4


def test_the_ends_of_the_range_draw_the_first_and_last_tokens_with_mass() -> None:
    logits = torch.zeros(2, 200)
    logits[:, :3] = logits[:, 190:] = -torch.inf
    noise = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert draw(logits, noise, SamplingConfig()).tolist() == [3, 189]


def test_nan_is_no_index_out_of_range() -> None:
    logits = torch.full((1, 70), torch.nan)
    assert 0 <= int(draw(logits, torch.tensor([0.5], dtype=torch.float64), SamplingConfig())) < 70


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("possible", [[0], [BLOCK - 1], [BLOCK], [3 * BLOCK - 1], [7, BLOCK + 7, 2 * BLOCK]])
def test_blocks_without_any_weight_are_passed_over(possible: list[int], noise: float) -> None:
    logits = torch.full((2, 3 * BLOCK), -torch.inf)
    logits[:, possible] = torch.tensor([0.1 * n for n in range(len(possible))])
    drawn = draw(logits, torch.tensor([noise, noise], dtype=torch.float64), SamplingConfig())
    assert set(drawn.tolist()) <= set(possible)
    assert noise != 0.0 or drawn.tolist() == [possible[0]] * 2
    assert noise < 0.9 or drawn.tolist() == [possible[-1]] * 2
