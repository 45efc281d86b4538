"""Canonical JSON (RFC 8785): one value has one encoding, and no other encoding is accepted."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import rfc8785

from tensorguard.errors import MalformedInput

MAX_DEPTH = 64  # deeper documents only exhaust the parser


def encode(value: Any) -> bytes:
    """Return the one encoding of `value`. Raises `MalformedInput` for NaN, ±Inf or odd types."""
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise MalformedInput("the value has no canonical JSON encoding") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise MalformedInput("a JSON object names the same member twice")
    return result


def _no_constant(word: str) -> Any:
    raise MalformedInput(f"{word} is not JSON")


def parse(data: bytes, *, limit: int, depth: int = MAX_DEPTH) -> Any:
    """Parse strict JSON: bounded in size and depth, no duplicate member, no NaN."""
    if len(data) > limit:
        raise MalformedInput(f"the JSON document is larger than {limit} bytes")
    check_depth(data, depth)
    try:
        return json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedInput("this is not JSON in UTF-8") from error


def decode(data: bytes, *, limit: int) -> Any:
    """Parse `data` and insist that it is the canonical encoding of what it says."""
    value = parse(data, limit=limit)
    if encode(value) != data:
        raise MalformedInput("the JSON document is not in canonical form")
    return value


# Possessive, and a string may lack its end: no input makes the search start over (quadratic time).
_STRINGS_OR_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def check_depth(data: bytes, limit: int) -> None:
    """Raise `MalformedInput` when brackets nest deeper than `limit`, before any parsing."""
    level = 0
    for match in _STRINGS_OR_BRACKETS.finditer(data):
        token = data[match.start()]
        if token in b"[{":
            level += 1
            if level > limit:
                raise MalformedInput(f"the JSON document nests deeper than {limit}")
        elif token in b"]}":
            level -= 1


def digest(value: Any) -> str:
    """Return the lower-case hex SHA-256 of the canonical encoding of `value`."""
    return hashlib.sha256(encode(value)).hexdigest()
