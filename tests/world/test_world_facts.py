from collections import Counter

import pytest

from prefloop.errors import DataError
from prefloop.world.facts import ATTRIBUTES, PRODUCTS, World, attribute_named, statement


def test_equal_seeds_give_equal_worlds_and_others_differ():
    assert World.make(3) == World.make(3)
    assert World.make(3).values != World.make(4).values


@pytest.mark.parametrize("seed", range(5))
def test_rare_and_unseen_are_spread_as_documented(seed):
    world = World.make(seed)
    assert len(world.rare) == 8
    assert world.rare < set(PRODUCTS)
    assert Counter(product for product, _ in world.unseen) == dict.fromkeys(PRODUCTS, 1)
    assert Counter(name for _, name in world.unseen) == {a.name: 5 for a in ATTRIBUTES}


def test_value_looks_up_what_was_assigned(fixed):
    assert fixed.value("vacuum", "origin") == "Japan"
    assert fixed.value("kettle", "warranty") == "two"


def test_every_value_occurs_over_seeds():
    seen = {value for seed in range(10) for value in World.make(seed).values}
    assert seen == {value for attribute in ATTRIBUTES for value in attribute.values}


def test_unknown_names_are_refused(world):
    with pytest.raises(DataError, match="no product 'spoon'"):
        world.value("spoon", "colour")
    with pytest.raises(DataError, match="no attribute 'price'"):
        world.value("kettle", "price")


def test_statement():
    assert statement("fan", attribute_named("warranty"), "three") == "the fan has a warranty of three years"
