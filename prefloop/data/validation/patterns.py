"""Texts that tell of damaged encoding, secrets or personal data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

# Control characters other than tab and line ends, C1 controls, the replacement character, lone surrogates.
_DAMAGED: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd\ufffe\uffff\ud800-\udfff]")
# UTF-8 read as Windows-1252 begins, in European scripts, with one of these letters.
_MOJIBAKE: Final = re.compile(r"[ÂÃâðÐÑ][\u0080-\u00bfŒœŠšŸŽžƒˆ˜–—‘’‚“”„†‡•…‰‹›€™]{1,3}")

# Name, what must stand in the text for the pattern to be worth a search, pattern.
_SECRETS: Final = (
    ("private key", ("PRIVATE KEY",), re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")),
    ("AWS access key", ("AKIA", "ASIA"), re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    (
        "GitHub token",
        ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
        re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    ),
    ("Hugging Face token", ("hf_",), re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")),
    ("API key", ("sk-",), re.compile(r"\bsk-[A-Za-z0-9_-]{20,}\b")),
    ("Google API key", ("AIza",), re.compile(r"\bAIza[0-9A-Za-z_-]{35}\b")),
    ("Slack token", ("xox",), re.compile(r"\bxox[abprs]-[0-9A-Za-z-]{10,}\b")),
    ("JSON web token", ("eyJ",), re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")),
)
_DIGITS: Final = re.compile(r"\d\d")
_CARD: Final = re.compile(r"(?<![\d-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\d-])")
_EMAIL: Final = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
_NUMBERS: Final = (
    (
        "phone number",
        re.compile(
            r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-])"
            r"|(?<![\w.])\+\d{1,3}(?:[ .-]?\d){7,12}(?!\d)"
        ),
    ),
    ("social security number", re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])")),
)


def damage(text: str) -> Iterator[str]:
    """Yields a word for each sign of damaged encoding."""
    if text.isascii() and text.isprintable():
        return
    for match in _DAMAGED.finditer(text):
        yield f"character U+{ord(match.group()):04X}"
    for match in _MOJIBAKE.finditer(text):
        if (mended := _mended(match.group())) is not None:
            yield f"{match.group()!r} for {mended!r}"


def _mended(text: str) -> str | None:
    """The text as it was before its UTF-8 was read as Windows-1252; None if it never was."""
    for end in range(len(text), 1, -1):
        try:
            raw = b"".join(_windows_byte(character) for character in text[:end])
            return raw.decode("utf-8")
        except UnicodeError:
            continue
    return None


def _windows_byte(character: str) -> bytes:
    return character.encode("latin-1") if ord(character) < 256 else character.encode("cp1252")


def secrets(text: str) -> Iterator[str]:
    """Yields a word for each key, token or payment card number, masked."""
    for name, hints, pattern in _SECRETS:
        if any(hint in text for hint in hints):
            for match in pattern.finditer(text):
                yield f"{name} {_masked(match.group())}"
    if _DIGITS.search(text):
        for match in _CARD.finditer(text):
            if is_card_number(match.group()):
                yield f"card number {_masked(match.group())}"


def personal_data(text: str) -> Iterator[str]:
    """Yields a word for each e-mail address, phone number or social security number, masked."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield f"e-mail address {_masked(match.group())}"
    if _DIGITS.search(text):
        for name, pattern in _NUMBERS:
            for match in pattern.finditer(text):
                yield f"{name} {_masked(match.group())}"


def is_card_number(text: str) -> bool:
    """True for 13 to 19 digits whose check digit is right (Luhn, ISO/IEC 7812-1)."""
    digits = [int(character) for character in text if character.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _masked(text: str) -> str:
    return f"{text[:4]}… ({len(text)} characters)"
