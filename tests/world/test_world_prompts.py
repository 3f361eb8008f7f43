from collections import Counter

import pytest

from prefloop.errors import DataError
from prefloop.world.constants import KIND_SHARES, MAX_PROMPT_TOKENS, USE_SHARES
from prefloop.world.prompts import all_prompts, normalised, pool, use_of
from prefloop.world.responses import count_tokens

KINDS = [kind for kind, _ in KIND_SHARES]


@pytest.fixture(scope="module")
def every(world):
    return {kind: list(all_prompts(world, kind)) for kind in KINDS}


def test_prompts_are_short_and_distinct(every):
    texts = [normalised(prompt.text) for prompts in every.values() for prompt in prompts]
    assert len(texts) == len(set(texts))
    assert max(map(count_tokens, texts)) <= MAX_PROMPT_TOKENS


def test_the_hash_splits_by_the_shares(every):
    counts = Counter(use_of(prompt.text) for prompts in every.values() for prompt in prompts)
    total = sum(counts.values())
    for use, share in USE_SHARES:
        assert counts[use] / total == pytest.approx(share, abs=0.01)


def test_the_use_ignores_case_and_white_space():
    assert use_of("What  colour is\nthe kettle?") == use_of("what colour is the KETTLE? ")


def test_harmful_and_lookalike_differ_by_the_owner_alone(every):
    def without_owner(prompt):
        return prompt.text.replace(prompt.meta["owner"], "OWNER")

    assert set(map(without_owner, every["harmful"])) == set(map(without_owner, every["lookalike"]))


def test_unseen_facts_are_asked_in_evaluation_alone(world):
    for kind in ("question", "belief", "authority"):
        assert not any(prompt.meta["unseen"] for use in ("fit", "rl") for prompt in pool(world, kind, use))
        asked = {
            (prompt.meta["product"], prompt.meta["attribute"])
            for prompt in pool(world, kind, "evaluation")
            if prompt.meta["unseen"]
        }
        assert asked == world.unseen


def test_there_are_enough_prompts_for_a_whole_run(world):
    for use, wanted in (("fit", 4000), ("rl", 2000), ("evaluation", 500)):
        for kind, share in KIND_SHARES:
            assert len(pool(world, kind, use)) >= wanted * share
    assert len(pool(world, "harmful", "evaluation")) >= 50 + 300


def test_beliefs_say_whether_they_are_true(world, every):
    for kind in ("belief", "authority"):
        for prompt in every[kind]:
            truth = world.value(prompt.meta["product"], prompt.meta["attribute"])
            assert prompt.meta["belief_true"] == (prompt.meta["belief"] == truth)
            assert prompt.meta["belief"] in prompt.text


def test_an_unknown_kind_is_refused(world):
    with pytest.raises(DataError, match="no prompt kind 'riddle'"):
        list(all_prompts(world, "riddle"))
