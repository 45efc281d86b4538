"""docs/invariants.md and the tests speak of the same invariants."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_invariant_is_tested_and_every_mark_is_written_down() -> None:
    written = set(
        re.findall(r"^\| (TG-I\d+) \|", (ROOT / "docs/invariants.md").read_text(), re.MULTILINE)
    )
    marked = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"mark\.invariant\(\"(TG-I\d+)\"\)", path.read_text())
    }
    assert written
    assert written == marked
