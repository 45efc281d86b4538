"""Strings without an end must not make the depth check of JSON take quadratic time."""

from __future__ import annotations

import time

import pytest

from tensorguard.crypto.canonical import check_depth, parse
from tensorguard.errors import MalformedInput


@pytest.mark.parametrize("body", [b'"' + b'\\"' * 500_000, b'"' * 999_999, b'"\\' * 333_333])
def test_strings_without_an_end_are_refused_in_linear_time(body: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(MalformedInput):
        parse(body, limit=len(body))
    assert time.monotonic() - began < 10


def test_brackets_in_strings_do_not_nest() -> None:
    check_depth(b'{"a[[[[": "\\"[[[[[", "b": []}', 2)
    with pytest.raises(MalformedInput):
        check_depth(b'{"a": [[]]}', 2)
