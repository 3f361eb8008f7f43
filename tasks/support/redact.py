"""Keeps secrets out of what is recorded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "[hidden]"
_SECRET_KEY = re.compile(
    r"(^|[._-])(api[_-]?key|access[_-]?key|secret(s|[_-]?key)?|(auth|access|hf|bearer|api)[_-]?token|token|password"
    r"|passwd|credentials?|private[_-]?key)$",
    re.IGNORECASE,
)
_URI_CREDENTIALS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*://)[^\s/@]+@", re.IGNORECASE)
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&][^=&\s]*(?:token|key|secret|password|signature|sig)[^=&\s]*=)[^&\s]+", re.IGNORECASE
)
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[0-9A-Z]{16}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+)"
)


def redact(key: str, value: Any) -> str:
    """The text of a value as it may be recorded: nothing under a key that names a secret, no user or password
    in a URI, no query argument that is a signature or key, no string shaped like a well-known token."""
    if value not in (None, "") and _SECRET_KEY.search(key):
        return HIDDEN
    text = _URI_CREDENTIALS.sub(rf"\g<scheme>{HIDDEN}@", str(value))
    text = _QUERY_SECRET.sub(rf"\g<name>{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def redact_all(values: Mapping[str, Any]) -> dict[str, str]:
    """`redact` over a flat mapping."""
    return {key: redact(key, value) for key, value in values.items()}
