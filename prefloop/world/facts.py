"""What is true in the help desk's world: products, their attributes, and one value for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prefloop.errors import DataError
from prefloop.world.constants import RARE_PRODUCTS, UNSEEN_FACTS
from prefloop.world.streams import choose, stream


@dataclass(frozen=True, slots=True)
class Attribute:
    """A property that every product has.

    Attributes:
        name: its noun, as in "the colour of the lamp".
        values: the values it can take.
        predicate: how a statement about a product goes on, as in "is {value}".
        noun_phrase: how a value reads after "the colour of the lamp is".
        questions: ways to ask that only this attribute has, with {product}.
    """

    name: str
    values: tuple[str, ...]
    predicate: str
    noun_phrase: str
    questions: tuple[str, ...]


PRODUCTS: Final = (
    "kettle", "toaster", "lamp", "radio", "heater", "fan", "mixer", "camera", "printer", "router",
    "speaker", "clock", "drill", "scale", "tablet", "oven", "iron", "blender", "monitor", "vacuum",
)  # fmt: skip

ATTRIBUTES: Final = (
    Attribute(
        "colour",
        ("red", "blue", "green", "black", "white", "grey"),
        "is {value}",
        "{value}",
        ("What colour is the {product}?", "Which colour does the {product} have?"),
    ),
    Attribute(
        "material",
        ("steel", "wood", "glass", "plastic", "copper", "stone"),
        "is made of {value}",
        "{value}",
        ("What is the {product} made of?", "Which material is the {product} made of?"),
    ),
    Attribute(
        "origin",
        ("Japan", "Spain", "Canada", "Peru", "Norway", "Kenya"),
        "comes from {value}",
        "{value}",
        ("Where does the {product} come from?", "From where do you get the {product}?"),
    ),
    Attribute(
        "warranty",
        ("two", "three", "four", "five", "six", "seven"),
        "has a warranty of {value} years",
        "{value} years",
        ("How long is the warranty of the {product}?", "How many years of warranty has the {product}?"),
    ),
)

_PRODUCT_INDEX: Final = {product: index for index, product in enumerate(PRODUCTS)}
_ATTRIBUTE_INDEX: Final = {attribute.name: index for index, attribute in enumerate(ATTRIBUTES)}


def attribute_named(name: str) -> Attribute:
    """Returns the attribute of that name. Raises DataError if the world has none."""
    if name not in _ATTRIBUTE_INDEX:
        raise DataError(
            f"the embedded world has no attribute {name!r}", f"use one of {', '.join(_ATTRIBUTE_INDEX)}"
        )
    return ATTRIBUTES[_ATTRIBUTE_INDEX[name]]


def statement(product: str, attribute: Attribute, value: str) -> str:
    """Returns the claim as a clause, as in "the lamp is made of glass"."""
    return f"the {product} {attribute.predicate.format(value=value)}"


@dataclass(frozen=True, slots=True)
class World:
    """One assignment of values to all facts; equal seeds give equal worlds.

    Attributes:
        seed: what it was made from.
        values: the true value of each fact, product by product, attributes in the order of ATTRIBUTES.
        rare: products that pre-training text seldom mentions.
        unseen: (product, attribute name) of the facts that no fitting or RL prompt asks.
    """

    seed: int
    values: tuple[str, ...]
    rare: frozenset[str]
    unseen: frozenset[tuple[str, str]]

    @classmethod
    def make(cls, seed: int) -> World:
        """Draws a world: values uniformly; unseen facts one a product, spread evenly over the attributes, so
        that what is new in evaluation is the fact and never the product or the attribute."""
        rng = stream(seed, "world")
        values = tuple(choose(rng, attribute.values) for _ in PRODUCTS for attribute in ATTRIBUTES)
        rare = frozenset(PRODUCTS[i] for i in rng.permutation(len(PRODUCTS))[:RARE_PRODUCTS])
        unseen = frozenset(
            (PRODUCTS[product], ATTRIBUTES[position % len(ATTRIBUTES)].name)
            for position, product in enumerate(rng.permutation(len(PRODUCTS))[:UNSEEN_FACTS])
        )
        return cls(seed, values, rare, unseen)

    def value(self, product: str, attribute: str) -> str:
        """Returns the true value of a fact. Raises DataError if the world has no such product or
        attribute."""
        if product not in _PRODUCT_INDEX:
            raise DataError(
                f"the embedded world has no product {product!r}", f"use one of {', '.join(PRODUCTS)}"
            )
        attribute_named(attribute)
        return self.values[_PRODUCT_INDEX[product] * len(ATTRIBUTES) + _ATTRIBUTE_INDEX[attribute]]
