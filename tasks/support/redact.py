"""Keeps secrets out of what is recorded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "[hidden]"
_SECRET_KEY = re.compile(
    r"(^|[._-])(api[_-]?key|x[_-]api[_-]key|access[_-]?key|account[_-]?key|secret(s|[_-]?(access[_-]?)?key)?"
    r"|(auth|access|hf|bearer|api|session|refresh|id)[_-]?token|token|passw(or)?d|passphrase|pwd|pass|credentials?"
    r"|private[_-]?key|authorization|auth([_-]?string)?|cookie|connection[_-]?string|client[_-]?secret)$",
    re.IGNORECASE,
)
# User and password, the password up to the last @ of the word: it may hold slashes and an @ of its own. What
# follows a colon and is a number up to a slash is a port.
_URI_CREDENTIALS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?:[^\s/@:'\"]*:(?!\d*(?:[/?#]|$))[^\s'\"]*|[^\s/@]+)@", re.IGNORECASE
)
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&;][^=&\s]*(?:token|key|secret|password|pwd|signature|sig|credential)[^=&\s]*=)[^&\s'\"]+",
    re.IGNORECASE,
)
# password=..., 'api_key': '...', Authorization: Bearer ... within a text
_NAMED_SECRET = re.compile(
    r"(?P<name>\b[\w-]*(?:passw(?:or)?d|passphrase|secret|api[_-]?key|access[_-]?key|account[_-]?key|private[_-]?key"
    r"|[_-]token|auth[_-]?string)['\"]?\s*(?:=|:)\s*)(?P<quote>['\"]?)(?P<value>[^\s'\",;&]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|sk_(?:live|test)_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{30,}"
    r"|github_pat_[A-Za-z0-9_]{30,}|glpat-[A-Za-z0-9_-]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,}|npm_[A-Za-z0-9]{30,}"
    r"|pypi-[A-Za-z0-9_-]{30,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[0-9A-Za-z_-]{35}|ya29\.[0-9A-Za-z_-]{20,}"
    r"|pn[ua]_[A-Za-z0-9]{30,}|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]+)"
)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_NO_SECRETS = ("PWD", "OLDPWD")
"""Variables that sound like a password, and hold the folder that a shell is in."""
_SHORTEST = 8
"""Characters that the value of a variable has at least before it is looked for: shorter ones are words."""


def redact(key: str, value: Any) -> str:
    """The text of a value as it may be recorded: nothing under a key that names a secret, no user or password
    in a URI, no query argument that is a signature or key, no string shaped like a well-known token, and no
    value of this process's own variables that name a secret."""
    if value not in (None, "") and _SECRET_KEY.search(key):
        return HIDDEN
    text = str(value)
    for secret in _own_secrets():
        text = text.replace(secret, HIDDEN)
    text = _PRIVATE_KEY.sub(HIDDEN, text)
    text = _URI_CREDENTIALS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _QUERY_SECRET.sub(rf"\g<name>{HIDDEN}", text)
    text = _NAMED_SECRET.sub(rf"\g<name>\g<quote>{HIDDEN}", text)
    text = _BEARER.sub(rf"\g<name>{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)


def redact_all(values: Mapping[str, Any]) -> dict[str, str]:
    """`redact` over a flat mapping."""
    return {key: redact(key, value) for key, value in values.items()}


def _own_secrets() -> Iterator[str]:
    """What this process knows as secrets, such as HF_TOKEN or MLFLOW_TRACKING_PASSWORD."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and name not in _NO_SECRETS and _SECRET_KEY.search(name):
            yield value
