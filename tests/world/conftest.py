import pytest

from prefloop.world.facts import World


@pytest.fixture(scope="session")
def world() -> World:
    return World.make(0)


@pytest.fixture(scope="session")
def fixed() -> World:
    """A world in which every fact has the first value of its attribute: red, steel, Japan, two."""
    made = World.make(0)
    return World(0, ("red", "steel", "Japan", "two") * 20, made.rare, made.unseen)
