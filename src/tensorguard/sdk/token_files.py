"""A token in a file of one's own: it is in no command line and in no environment."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tensorguard.crypto.files import read_bounded
from tensorguard.errors import MalformedInput

MAX_TOKEN: Final = 8192  # characters; a grant has at most that


class TokenUnreadable(MalformedInput):
    code = "token_file"
    remedy = "Put the token, and nothing else, into the file."


def read_token(path: Path) -> str:
    """Return the token in a file that only its owner can read.

    Raises `NotFound`, `UnsafeFile` or `TokenUnreadable`.
    """
    data = read_bounded(path, limit=2 * MAX_TOKEN, private=True).strip()
    if not 0 < len(data) <= MAX_TOKEN or not data.isascii() or len(data.split()) != 1:
        raise TokenUnreadable(f"{path} does not hold one token")
    return data.decode("ascii")
