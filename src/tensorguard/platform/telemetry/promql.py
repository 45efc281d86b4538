"""The part of PromQL that is answered: one selector, or a sum of numbers. Anything else is refused.

    joint_angle{robot="arm-1", joint=~"0|1"}      {"joint.angle", "service.name"="arm"}      1+1

Matchers are `=`, `!=`, `=~` and `!~`; a label that is absent is empty. Patterns match the whole value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tensorguard.errors import InputError

MAX_QUERY: Final = 4096  # characters
MAX_MATCHERS: Final = 16
MAX_PATTERN: Final = 256  # characters
NAME_LABEL: Final = "__name__"

_TOKEN = re.compile(
    r"""\s*(?:(?P<word>[A-Za-z_:][A-Za-z0-9_:]*)"""
    r"""|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<number>\d+(?:\.\d+)?)"""
    r"""|(?P<sign>=~|!~|!=|=|\{|\}|,|\+))"""
)
_ESCAPE = re.compile(r"\\(.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'"}
_BACKREFERENCE = re.compile(r"\\[0-9AbBdDmMsSwWyYZ]|\(\?[^:]|\(\*")


class QueryUnsupported(InputError):
    code = "promql_unsupported"
    remedy = (
        'Ask for one selector, such as name{label="value"}; docs/telemetry.md says what is read.'
    )


class How(StrEnum):
    """How a label is compared."""

    equal = "="
    different = "!="
    like = "=~"
    unlike = "!~"


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label; `__name__` is the name of the series."""

    label: str
    how: How
    value: str


Selector = tuple[Matcher, ...]


def parse(query: str) -> Selector | float:
    """Return the matchers of a selector, or the value of a sum. Raises `QueryUnsupported`."""
    tokens = _tokens(query)
    if tokens and tokens[0][0] == "number":
        return _sum(tokens)
    name: list[Matcher] = []
    if tokens and tokens[0][0] == "word":
        name.append(Matcher(NAME_LABEL, How.equal, tokens.pop(0)[1]))
    if tokens:
        name += _braces(tokens)
    if not name or all(_matches_empty(matcher) for matcher in name):
        raise QueryUnsupported("a selector needs a matcher that the empty text does not meet")
    if len(name) > MAX_MATCHERS:
        raise QueryUnsupported(f"a selector may have at most {MAX_MATCHERS} matchers")
    return tuple(name)


def _tokens(query: str) -> list[tuple[str, str]]:
    if len(query) > MAX_QUERY or "\0" in query:
        raise QueryUnsupported(f"a query has at most {MAX_QUERY} characters, and no NUL")
    found, at, query = list[tuple[str, str]](), 0, query.rstrip()
    while at < len(query):
        match = _TOKEN.match(query, at)
        if match is None or match.lastgroup is None:
            raise QueryUnsupported(f"this is not understood: {query[at : at + 32]!r}")
        found.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    return found


def _sum(tokens: Sequence[tuple[str, str]]) -> float:
    signs = [text for _, text in tokens[1::2]]
    numbers = [text for kind, text in tokens[::2] if kind == "number"]
    if len(numbers) != len(tokens[::2]) or set(signs) - {"+"} or len(tokens) % 2 == 0:
        raise QueryUnsupported("of arithmetic only sums of numbers are computed")
    return sum(float(number) for number in numbers)


def _braces(tokens: list[tuple[str, str]]) -> list[Matcher]:
    if tokens[0] != ("sign", "{") or tokens[-1] != ("sign", "}"):
        raise QueryUnsupported("functions, operators and ranges are not computed")
    inner, matchers = tokens[1:-1], list[Matcher]()
    while inner:
        kind, label = inner.pop(0)
        if kind == "text" and (not inner or inner[0] == ("sign", ",")):
            matchers.append(Matcher(NAME_LABEL, How.equal, _unquoted(label)))
        else:
            matchers.append(_matcher(kind, label, inner))
        if inner and inner.pop(0) != ("sign", ","):
            raise QueryUnsupported("matchers are separated by commas")
    return matchers


def _matcher(kind: str, label: str, rest: list[tuple[str, str]]) -> Matcher:
    if kind not in {"word", "text"} or len(rest) < 2:  # noqa: PLR2004 - an operator and a value
        raise QueryUnsupported("a matcher is label, operator, quoted value")
    (_, sign), (value_kind, value) = rest.pop(0), rest.pop(0)
    if sign not in set(How) or value_kind != "text":
        raise QueryUnsupported("a matcher is label, operator, quoted value")
    how, text = How(sign), _unquoted(value)
    if how in {How.like, How.unlike}:
        _check_pattern(text)
    return Matcher(_unquoted(label) if kind == "text" else label, how, text)


def _unquoted(text: str) -> str:
    def plain(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise QueryUnsupported(f"the escape {match[0]!r} is not known")
        return _ESCAPES[match[1]]

    return _ESCAPE.sub(plain, text[1:-1])


def _check_pattern(pattern: str) -> None:
    """Refuse what databases read differently from Prometheus, and what has no end."""
    if len(pattern) > MAX_PATTERN:
        raise QueryUnsupported(f"a pattern has at most {MAX_PATTERN} characters")
    if _BACKREFERENCE.search(pattern) or pattern.startswith("***"):
        raise QueryUnsupported("a pattern may use . * + ? | [] () and escaped punctuation")
    try:
        re.compile(pattern)
    except re.error as error:
        raise QueryUnsupported("the pattern is not a regular expression") from error


def _matches_empty(matcher: Matcher) -> bool:
    match matcher.how:
        case How.equal:
            return not matcher.value
        case How.different:
            return bool(matcher.value)
        case How.like:
            return re.fullmatch(matcher.value, "") is not None
        case _:
            return re.fullmatch(matcher.value, "") is None
