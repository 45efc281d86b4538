"""A problem document (RFC 9457) that came from another process, and the error that carries it on.

The text of a remote problem is for people: it is bounded and printable, and never interpreted.
"""

from __future__ import annotations

import msgspec

from tensorguard.errors import TensorGuardError

MAX_PROBLEM = 64 * 1024  # bytes; ours have a few hundred
MAX_TEXT = 2000  # characters of one member
MAX_RETRY_AFTER = 3600  # seconds; a longer wait is not a retry


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The members that our servers send; unknown ones are ignored, as RFC 9457 asks."""

    status: int
    code: str
    detail: str
    remedy: str
    request_id: str | None = None
    retry_after: int | None = None

    @classmethod
    def of(cls, error: TensorGuardError) -> Problem:
        """Return what is told of `error`."""
        retry_after = getattr(error, "retry_after", None)
        return cls(
            status=error.status,
            code=error.code,
            detail=str(error),
            remedy=error.remedy,
            retry_after=retry_after,
        )

    @classmethod
    def from_response(cls, body: bytes, *, status: int, retry_after: str | None) -> Problem:
        """Read the answer of a server; what is no problem document is described as such."""
        try:
            if len(body) > MAX_PROBLEM:
                raise msgspec.DecodeError("too long")
            problem = msgspec.json.decode(body, type=cls)
        except (msgspec.DecodeError, ValueError, RecursionError):
            problem = cls(
                status=status,
                code="unexpected_answer",
                detail=f"the server answered {status} without a problem document",
                remedy="Check the URL; a proxy may have answered instead of the server.",
            )
        return msgspec.structs.replace(
            problem,
            status=status,
            code=_text(problem.code),
            detail=_text(problem.detail),
            remedy=_text(problem.remedy),
            request_id=_text(problem.request_id) if problem.request_id else None,
            retry_after=_seconds(retry_after),
        )


class RemoteProblem(TensorGuardError):
    """What another process refused; `code`, `status` and `remedy` are those that it gave."""

    code = "remote_problem"
    status = 502
    remedy = "Read the detail; it comes from the server."

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.retry_after = problem.retry_after
        given = {"code": problem.code, "status": problem.status, "remedy": problem.remedy}
        vars(self).update(given)  # this instance speaks for the other process


def _text(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])


def _seconds(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdigit():
        return None  # an HTTP date: our servers send seconds
    return min(int(text[:9]), MAX_RETRY_AFTER)
