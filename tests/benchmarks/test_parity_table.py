"""The comparison with a peer: what counts as equal, and what fails. No peer is needed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.alongside import offline, on_policy
from benchmarks.alongside.material import conversations
from benchmarks.alongside.rows import ROWS
from benchmarks.alongside.table import TOLERANCE, Row, compare, relative, table
from benchmarks.peers.recording import Recording, sequences_of
from prefloop.models.shared_prompt import Tree, padded_trees

EQUAL = Row("dpo", "dpo")
IN_ALL = Row("dpo, otherwise", "dpo", differs="all", why="by decision")
IN_LOSS = Row("rloo", "rloo", differs="loss")


def recording(losses: list[float], norms: list[float]) -> dict[str, Any]:
    return {"losses": losses, "norms": norms, "tokens": [[[1, 2], [3]]] * len(losses)}


OURS = recording([0.7, 0.6], [2.0, 1.0])
NEAR = recording([0.7 * (1 + 9e-5), 0.6], [2.0, 1.0 + 9e-5])
OTHER_LOSS = recording([0.7, 0.6 * (1 + 3e-4)], [2.0, 1.0])
OTHER_NORM = recording([0.7, 0.6], [2.0 * (1 - 3e-4), 1.0])
BOTH_OTHER = recording([0.8, 0.6], [2.0, 1.1])


@pytest.mark.parametrize(
    ("row", "theirs", "passes"),
    [
        (EQUAL, OURS, True),
        (EQUAL, NEAR, True),
        (EQUAL, OTHER_LOSS, False),
        (EQUAL, OTHER_NORM, False),
        (IN_LOSS, OTHER_LOSS, True),
        (IN_LOSS, OURS, False),
        (IN_LOSS, BOTH_OTHER, False),
        (IN_ALL, BOTH_OTHER, True),
        (IN_ALL, NEAR, False),  # its reason would be stale
        (IN_ALL, OTHER_LOSS, False),
    ],
)
def test_a_row_passes_when_it_is_as_it_says(row: Row, theirs: dict[str, Any], passes: bool) -> None:
    outcome = compare(row, OURS, theirs, 2)
    assert outcome.passes is passes
    assert (outcome.verdict == "FAILS") is not passes
    assert outcome.verdict in table([outcome])


def test_the_largest_difference_of_all_steps_counts() -> None:
    outcome = compare(EQUAL, OURS, recording([0.7, 0.5], [2.5, 1.0]), 2)
    assert outcome.loss == pytest.approx(0.1 / 0.6)
    assert outcome.norm == pytest.approx(0.2)
    assert (outcome.first, outcome.last) == (0.7, 0.6)


def test_a_small_loss_is_compared_at_its_rows_scale() -> None:
    assert relative([1e-9], [-1e-9]) == pytest.approx(2.0)
    assert relative([1e-9], [-1e-9], 1e-2) == pytest.approx(2e-7)
    assert relative([0.0], [0.0]) == 0.0


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_is_never_equal_and_no_decision(place: int) -> None:
    losses = [0.7, 0.6]
    losses[place] = math.nan
    assert math.isnan(relative([0.7, 0.6], losses))
    theirs = recording(losses, [2.0, 1.0])
    assert not compare(EQUAL, OURS, theirs, 2).passes
    assert not compare(EQUAL, theirs, theirs, 2).passes
    nowhere = recording([math.nan] * 2, [math.nan] * 2)
    assert not compare(IN_ALL, OURS, nowhere, 2).passes


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"error": "ImportError: no trl"}, "no trl"),
        (recording([0.7], [2.0]), "instead of 2 steps"),
        ({**OURS, "tokens": [[[1, 2], [3]], [[1, 2], [4]]]}, r"step 2 saw different tokens: \[\[3\]\]"),
        ({**OURS, "tokens": [[[1, 2], [3]], [[1, 2], [3], [3]]]}, "2 sequences against 3"),
        ({**OURS, "tokens": [[[1, 2], [3]], []]}, "without tokens"),
    ],
)
@pytest.mark.parametrize("row", [EQUAL, IN_ALL])
def test_what_cannot_be_compared_fails(row: Row, theirs: dict[str, Any], said: str) -> None:
    outcome = compare(row, OURS, theirs, 2)
    assert outcome.verdict == "FAILS"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(outcome.problem)


def test_a_recording_has_the_tokens_that_went_through_with_gradient() -> None:
    class Model(nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return input_ids

    model, found = Model(), Recording()
    left = torch.tensor([[0, 5, 6], [7, 8, 9]]), torch.tensor([[False, True, True], [True, True, True]])
    right = torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    with found.watching(model):
        with torch.no_grad():
            model(input_ids=left[0], attention_mask=left[1])
        for ids, mask in (left, right):
            model(input_ids=ids, attention_mask=mask)
            found.add(torch.tensor(0.25))
            found.add(0.25)
            found.step(torch.tensor(3.0))
    model(input_ids=left[0], attention_mask=left[1])
    assert found.as_dict() == {"losses": [0.5] * 2, "norms": [3.0] * 2, "tokens": [[[5, 6], [7, 8, 9]]] * 2}


def test_sequences_that_share_their_beginning_are_told_apart() -> None:
    trees = [Tree([5, 6], [[7], [8, 9]]), Tree([], [[4]])]
    batch = padded_trees(trees, pad_id=0)
    found = [sequences_of(ids, mask) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    assert found == [[[5, 6, 7], [5, 6, 8, 9]], [[4]]]


def test_rows_have_names_of_their_own_and_reasons_where_they_differ() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(row.why for row in ROWS if row.differs)
    assert {row.method for row in ROWS} == {*offline.CONFIGS, "grpo", "rloo", "ppo"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_rows_section_is_one(row: Row) -> None:
    whole = (offline if row.method in offline.CONFIGS else on_policy).section(row, 20)
    if row.method in offline.CONFIGS:
        config: Any = offline.CONFIGS[row.method](**whole)
        assert config.steps == 20
    else:
        config = on_policy.config_of(row, whole)
        assert config.steps * config.inner_epochs * config.minibatches == 20
    assert config.max_grad_norm in (0.0, 1.0)
    assert TOLERANCE == 1e-4


def test_no_two_prompts_are_equal() -> None:
    asked = [str(row["prompt"]) for row in conversations()]
    assert len(set(asked)) == len(asked) == 48
    assert all(row["chosen"] != row["rejected"] for row in conversations())
