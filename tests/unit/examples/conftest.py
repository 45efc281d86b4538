"""The examples are scripts outside the wheel: their folder goes on the path, as running one does."""

from __future__ import annotations

import sys
from pathlib import Path

for example in ("reacher", "minilm"):
    sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / example))
