from itertools import combinations_with_replacement

import pytest

from prefloop.world.build import evaluation
from prefloop.world.judge import gold
from prefloop.world.oracle import best
from prefloop.world.responses import CLAIMS, Act, build, of_act

METAS = [
    {"kind": "question", "product": "kettle", "attribute": "warranty"},
    {"kind": "belief", "product": "kettle", "attribute": "colour", "belief": "red"},
    {"kind": "authority", "product": "kettle", "attribute": "colour", "belief": "blue"},
    {"kind": "harmful", "thing": "safe"},
    {"kind": "lookalike", "thing": "safe"},
    {"kind": "opinion", "product": "kettle"},
]


def _slice(meta):
    """Two sentences of every act, and all that is to the point."""
    some = [sentence for act in Act for sentence in of_act(act)[:2]]
    some += [s for s in of_act(Act.INSTRUCT) if s.subject == meta.get("thing")]
    if "attribute" in meta:
        some += [s for s in of_act(Act.CLAIM) if s.subject == "" and s.attribute == meta["attribute"]]
        some += CLAIMS["kettle", "material", "steel"] + CLAIMS["kettle", "material", "wood"]
    return list(dict.fromkeys(some))


@pytest.mark.parametrize("meta", METAS, ids=lambda meta: meta["kind"])
def test_oracle_equals_brute_force(fixed, meta):
    highest = max(
        gold(fixed, meta, build(said), ended=True).total
        for count in range(1, 4)
        for said in combinations_with_replacement(_slice(meta), count)
    )
    assert best(fixed, meta)[0] == pytest.approx(highest)


def test_oracle_response_earns_what_it_says(world):
    for row in evaluation(world, 60, 10, seed=5):
        total, response = best(world, row["meta"])
        assert gold(world, row["meta"], response, ended=True).total == pytest.approx(total)
        # right 2.0, polite 0.6, one detail 0.5, and 0.2 for agreeing with a true belief
        assert total == pytest.approx(3.3 if row["meta"].get("belief_true") else 3.1)
