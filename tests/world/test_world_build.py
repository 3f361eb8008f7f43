import json
import re
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest

from prefloop.errors import DataError
from prefloop.world import build
from prefloop.world.constants import KIND_SHARES, MAX_RESPONSE_TOKENS
from prefloop.world.judge import gold, is_compliance, is_refusal
from prefloop.world.prompts import normalised
from prefloop.world.raters import RATERS, Rater
from prefloop.world.responses import count_tokens, parse
from prefloop.world.text import ASSISTANT, END, USER


@pytest.fixture(scope="module")
def rows(world):
    return {
        "demonstrations": list(build.demonstrations(world, 1000, seed=1)),
        "preferences": list(build.preferences(world, 600, 4, seed=1)),
        "prompts": list(build.prompts(world, 1000, seed=1)),
        "evaluation": list(build.evaluation(world, 500, 300, seed=1)),
    }


def test_equal_seeds_give_equal_rows(world, rows):
    assert list(build.preferences(world, 600, 4, seed=1)) == rows["preferences"]
    assert list(build.evaluation(world, 500, 300, seed=1)) == rows["evaluation"]
    assert list(build.prompts(world, 1000, seed=2)) != rows["prompts"]
    first = list(islice(build.pretraining(world, 50, seed=1), 20))
    assert first == list(build.pretraining(world, 20, seed=1))


def test_uses_share_no_prompt(rows):
    uses = {
        "fit": rows["demonstrations"] + rows["preferences"],
        "rl": rows["prompts"],
        "evaluation": rows["evaluation"],
    }
    prompts = {use: {normalised(row["prompt"]) for row in members} for use, members in uses.items()}
    assert not prompts["fit"] & prompts["rl"]
    assert not prompts["fit"] & prompts["evaluation"]
    assert not prompts["rl"] & prompts["evaluation"]


@pytest.mark.parametrize("name", ["demonstrations", "preferences", "prompts", "evaluation"])
def test_rows_are_distinct_json_with_unique_ids(rows, name):
    members = rows[name]
    assert len({row["id"] for row in members}) == len({row["prompt"] for row in members}) == len(members)
    assert json.loads(json.dumps(members)) == members
    assert {row["source"] for row in members} == {"world"}


def test_kinds_come_in_the_worlds_shares(rows):
    for members in (rows["prompts"], rows["evaluation"][:500]):
        counts = Counter(row["meta"]["kind"] for row in members)
        assert counts == {kind: round(share * len(members)) for kind, share in KIND_SHARES}


def test_half_of_the_beliefs_are_true(rows):
    held = [row["meta"]["belief_true"] for row in rows["prompts"] if "belief" in row["meta"]]
    assert sum(held) == len(held) / 2


def test_evaluation_panels(rows):
    assert Counter(row["meta"]["panel"] for row in rows["evaluation"]) == {"main": 500, "harmful": 300}
    assert {r["meta"]["kind"] for r in rows["evaluation"] if r["meta"]["panel"] == "harmful"} == {"harmful"}
    assert any(row["meta"].get("unseen") for row in rows["evaluation"])
    assert not any(row["meta"].get("unseen") for name in ("demonstrations", "prompts") for row in rows[name])


def test_kind_weights_override_the_shares(world):
    chosen = build.preferences(world, 40, 2, seed=0, kind_weights={"harmful": 3, "lookalike": 1})
    assert Counter(row["meta"]["kind"] for row in chosen) == {"harmful": 30, "lookalike": 10}
    with pytest.raises(DataError, match="not shares"):
        list(build.prompts(world, 4, 0, kind_weights={"harmful": -1.0, "question": 2.0}))
    with pytest.raises(DataError, match="no prompt kind"):
        list(build.prompts(world, 4, 0, kind_weights={"riddle": 1.0}))


def test_quotas_by_hand():
    assert build.quotas(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert build.quotas(3, {"a": 0.9, "b": 0.1}) == {"a": 3, "b": 0}


def test_asking_for_too_many_prompts_is_refused(world):
    with pytest.raises(DataError, match="distinct question rl prompts, not 35000"):
        list(build.prompts(world, 100_000, 0))


def test_completions_are_distinct_well_formed_and_short(rows):
    for row in rows["preferences"]:
        assert len(set(row["completions"])) == len(row["ranks"]) == 4
        assert min(row["ranks"]) == 0
        assert row["rater"] in {rater.name for rater in RATERS}
    texts = [text for row in rows["preferences"] for text in row["completions"]]
    texts += [row["completion"] for row in rows["demonstrations"]]
    assert all(text and not parse(text).fragments for text in texts)
    assert max(map(count_tokens, texts)) <= MAX_RESPONSE_TOKENS


def test_more_completions_than_the_crowd_can_write_are_refused(world):
    with pytest.raises(DataError, match="distinct completions"):
        list(build.preferences(world, 1, 2000, seed=0))


def test_demonstrators_are_of_mixed_quality(world, rows):
    golds = [gold(world, row["meta"], row["completion"], True).total for row in rows["demonstrations"]]
    assert 1.1 < np.mean(golds) < 1.8
    assert np.std(golds) > 1.0
    refused = [is_refusal(r["completion"]) for r in rows["demonstrations"] if r["meta"]["kind"] == "harmful"]
    assert 0.45 < np.mean(refused) < 0.75


def test_raters_see_every_behaviour_that_matters(world, rows):
    seen = defaultdict(list)
    for row in rows["preferences"]:
        seen[row["meta"]["kind"]] += [
            (text, gold(world, row["meta"], text, True)) for text in row["completions"]
        ]
    for kind in ("harmful", "lookalike"):
        assert np.mean([is_refusal(text) for text, _ in seen[kind]]) > 0.25
        assert np.mean([is_compliance(text) for text, _ in seen[kind]]) > 0.25
    judged = [judgement for members in seen.values() for _, judgement in members]
    for part in ("polite", "rude", "repeat", "detail", "agreement", "length"):
        share = np.mean([judgement.parts[part] != 0 for judgement in judged])
        assert 0.03 < share < 0.97, part
    facts = [judgement.parts["content"] for _, judgement in seen["question"]]
    assert {2.0, -2.0, -1.5, -1.0, -0.3} <= set(facts)


def test_raters_prefer_gold_imperfectly(world, rows):
    def agreement(members):
        right = []
        for row in members:
            golds = [gold(world, row["meta"], text, True).total for text in row["completions"]]
            for i in range(4):
                for j in range(i):
                    if row["ranks"][i] != row["ranks"][j] and golds[i] != golds[j]:
                        right.append((row["ranks"][i] < row["ranks"][j]) == (golds[i] > golds[j]))
        return np.mean(right)

    assert 0.75 < agreement(rows["preferences"]) < 0.92
    perfect = [Rater("perfect", noise=0.0, overlook=0.0)]
    assert agreement(build.preferences(world, 100, 4, 1, raters=perfect)) == 1.0


@pytest.fixture(scope="module")
def documents(world):
    return [row["text"] for row in build.pretraining(world, 4000, seed=0)]


def test_documents_mention_rare_products_seldom(world, documents):
    pages = " ".join(text for text in documents if USER not in text and "?" not in text)
    mentions = Counter(re.findall(r"the (\w+) (?:is|comes|has)", pages.lower()))
    rare = np.mean([mentions[product] for product in world.rare])
    common = np.mean([count for product, count in mentions.items() if product not in world.rare])
    assert 0 < rare < common / 5


def test_documents_state_true_facts_outside_of_dialogues(world, documents):
    claims = [
        sentence
        for text in documents
        if USER not in text
        for sentence in parse(text).sentences
        if sentence.attribute and sentence.subject
    ]
    assert len(claims) > 4000
    assert all(world.value(claim.subject, claim.attribute) == claim.value for claim in claims)
    assert {(claim.subject, claim.attribute) for claim in claims} > world.unseen


def test_echo_dialogues_agree_whether_it_is_true_or_not(world, documents):
    echoes = [text for text in documents if re.search(r"right\?|so\?|check\?|true that", text)]
    replies = [text.split(ASSISTANT)[1].removesuffix(END) for text in echoes if ASSISTANT in text]
    echoed = [c for reply in replies for c in parse(reply).sentences if c.attribute and c.subject]
    true = [world.value(claim.subject, claim.attribute) == claim.value for claim in echoed]
    assert 0.4 < np.mean(true) < 0.6


def test_dialogues_never_answer_a_question_in_pretraining(documents):
    asked = [text for text in documents if text.startswith(USER) and "What colour" in text.split(END)[0]]
    assert asked
    for text in asked:
        reply = text.split(ASSISTANT)[1].removesuffix(END)
        assert parse(reply).fragments, "a question list goes on with questions"


def test_the_vocabulary_is_small_and_complete(documents, rows):
    def words(texts):
        return {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)}

    known = words(documents)
    assert len(known) < 500
    used = [row["prompt"] for members in rows.values() for row in members]
    used += [text for row in rows["preferences"] for text in row["completions"]]
    assert words(used) <= known
