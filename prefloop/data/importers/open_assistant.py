"""Message trees with ranked replies (OpenAssistant): one comparison a message that has two ranked replies or
more.

`rank` 0 is best. Replies that are deleted or not ranked are not compared; `meta.unranked` counts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Messages, Row
from prefloop.data.transcripts import compact, required, required_text

KIND: Final = "preferences"
_ROLES: Final = {"prompter": "user", "assistant": "assistant"}


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields the comparisons of one tree, from its root down."""
    tree = str(required(record, "message_tree_id"))
    todo: list[tuple[Any, Messages]] = [(required(record, "prompt"), [])]
    while todo:
        node, before = todo.pop()
        role = required_text(node, "role")
        if role not in _ROLES:
            raise ValueError(f"role must be prompter or assistant, got {role!r}")
        path = [*before, {"role": _ROLES[role], "content": required_text(node, "text")}]
        replies = node.get("replies") or []
        if role == "prompter":
            yield from _comparison(node, path, replies, tree)
        todo.extend((reply, path) for reply in reversed(replies))


def _comparison(node: Any, path: Messages, replies: list[Any], tree: str) -> Iterator[tuple[str, Row]]:
    ranked = [reply for reply in replies if reply.get("rank") is not None and not reply.get("deleted")]
    if len(ranked) < 2:
        return
    meta = {"tree": tree, "lang": node.get("lang"), "unranked": len(replies) - len(ranked)}
    yield (
        "preferences",
        {
            "id": str(required(node, "message_id")),
            "prompt": compact(path, "user"),
            "completions": [required_text(reply, "text") for reply in ranked],
            "ranks": [reply["rank"] for reply in ranked],
            "meta": meta,
        },
    )
