"""One JSON object per line; fields that can carry secrets never get out."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

from tensorguard.observability import request_ids

REDACTED = "[redacted]"
_SENSITIVE_NAME = re.compile(
    r"pass(word|phrase)?|secret|token|authorization|cookie|master|private|api_?key|assertion|pin\b",
    re.IGNORECASE,
)
_SENSITIVE_TEXT = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 " + REDACTED),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"), REDACTED),  # a JWT
    (re.compile(r"\btg[a-z]{1,2}_[A-Za-z0-9_-]{16,}"), REDACTED),  # our own tokens
    (re.compile(r"(\w+://[^:/@\s]*:)[^@/\s]+@"), r"\1" + REDACTED + "@"),  # a password in a URL
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END|$)"), REDACTED),
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def redact(text: str) -> str:
    """Return `text` without bearer tokens, JWTs, URL passwords and private keys."""
    for pattern, replacement in _SENSITIVE_TEXT:
        text = pattern.sub(replacement, text)
    return text


def _value(name: str, value: object) -> object:
    if _SENSITIVE_NAME.search(name):
        return REDACTED
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact(str(value))


class JsonFormatter(logging.Formatter):
    """Renders a record as one line of JSON with the request id."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "event": redact(record.getMessage()),
            "request_id": request_ids.current.get(),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD and k[0] != "_"}
        line |= {name: _value(name, value) for name, value in extra.items() if name not in line}
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=True, default=str)


def configure(level: str, stream: TextIO = sys.stderr) -> None:
    """Send every logger of this process through the JSON formatter."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # ours carries the request id
    logging.getLogger("httpx").setLevel(logging.WARNING)
