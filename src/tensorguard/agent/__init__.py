"""What runs on a robot: it spools samples durably, delivers them once, and counts what it could not keep.

    with Recorder.open(Path("/var/lib/tensorguard-agent")) as recorder:
        recorder.record("arm.torque", 4.2, labels={"joint": "2"}, unit="N.m")

`Recorder` writes to the spool from any process; `tensorguard agent run` delivers what is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensorguard.agent.recorder import Recorder
    from tensorguard.agent.records import Priority

__all__ = ["Priority", "Recorder"]


def __getattr__(name: str) -> object:
    """Import a public noun when it is first used (PEP 562)."""
    if name == "Recorder":
        from tensorguard.agent.recorder import Recorder

        return Recorder
    if name == "Priority":
        from tensorguard.agent.records import Priority

        return Priority
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
