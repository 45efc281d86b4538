"""The token request: a bounded form, each parameter at most once, empty means absent (RFC 6749, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final
from urllib.parse import parse_qsl

from tensorguard.platform.oauth.errors import InvalidRequest
from tensorguard.wire.oauth import FORM

MAX_FORM: Final = 32 * 1024  # bytes; an assertion has about 500, a subject token at most 8,192
MAX_FIELDS: Final = 32


@dataclass(frozen=True, slots=True)
class TokenForm:
    """The parameters that we know; RFC 6749 has us ignore others."""

    grant_type: str | None = None
    client_id: str | None = None
    client_assertion: str | None = None
    client_assertion_type: str | None = None
    scope: str | None = None
    resource: str | None = None
    audience: str | None = None
    subject_token: str | None = None
    subject_token_type: str | None = None
    requested_token_type: str | None = None

    @property
    def target(self) -> str | None:
        """The audience that is asked for (RFC 8707 `resource`, RFC 8693 `audience`)."""
        if self.resource and self.audience and self.resource != self.audience:
            raise InvalidRequest("resource and audience name two targets")
        return self.resource or self.audience


KNOWN: Final = frozenset(field.name for field in fields(TokenForm))


def parse(body: bytes, content_type: str) -> TokenForm:
    """Read the form. Raises `InvalidRequest`."""
    if content_type.partition(";")[0].strip().lower() != FORM:
        raise InvalidRequest(f"a token request is {FORM}")
    if len(body) > MAX_FORM:
        raise InvalidRequest(f"a token request has at most {MAX_FORM} bytes")
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError as error:
        raise InvalidRequest("the form cannot be read") from error
    values = dict(pairs)
    if len(values) != len(pairs):
        raise InvalidRequest("a parameter is given twice")
    return TokenForm(**{name: values[name] for name in KNOWN if values.get(name)})
