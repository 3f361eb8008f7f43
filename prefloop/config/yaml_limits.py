"""Limits on YAML from outside: no value that grows without end when it is read."""

from __future__ import annotations

from typing import Any, Final

import yaml

from prefloop.errors import ConfigError

MOST_NODES: Final = 50_000
"""Keys and values of a whole parameter file, anchors written out; the largest preset has about 500."""
DEEPEST: Final = 40


def check_nodes(node: Any, where: str) -> None:
    """Refuses what would be endless or huge once its anchors are written out, and a key that stands twice.

    Args:
        node: as `yaml.compose` gives it. where: the file or argument, for messages.

    Raises:
        ConfigError: names the line.
    """
    _Walk(where).visit(node, 0)


class _Walk:
    def __init__(self, where: str) -> None:
        self.where, self.seen = where, 0

    def visit(self, node: Any, depth: int) -> None:
        """Goes through a node and what it holds, an anchor's content each time it is named."""
        self.seen += 1
        if node is not None and (self.seen > MOST_NODES or depth > DEEPEST):
            bound = f"{MOST_NODES} values" if self.seen > MOST_NODES else f"{DEEPEST} levels"
            line = node.start_mark.line + 1
            raise ConfigError(
                f"{self.where}, line {line}: more than {bound}, counting what anchors (&, *) repeat",
                "write the values out without anchors",
            )
        if isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, value in node.value:
                if str(key.value) in keys:
                    # YAML would keep the last without a word.
                    raise ConfigError(
                        f"{self.where}, line {key.start_mark.line + 1}: the key {key.value!r} stands twice",
                        "remove one of them",
                    )
                keys.add(str(key.value))
                self.visit(key, depth + 1)
                self.visit(value, depth + 1)
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                self.visit(item, depth + 1)
