"""Many predictions in a row, and where their time went. Unknown times are shown as unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.errors import MalformedInput
from tensorguard.sdk.inference import EncryptedModel, OutOfRange, Timing

Floats = npt.NDArray[np.float64]
PARTS = ("total", "client", "network", "server")


@dataclass(frozen=True, slots=True)
class Report:
    """Outputs (n, outputs) and the timing of each row."""

    model: str
    version: str
    pack_id: str
    labels: tuple[str, ...]
    outputs: Floats
    timings: tuple[Timing, ...]

    def latency_ms(self) -> dict[str, dict[str, float] | None]:
        """Return the 50th and 99th percentile of each part, None for a part that is unknown."""
        return {part: percentiles(self._values(part)) for part in PARTS}

    def _values(self, part: str) -> list[float | None]:
        return [getattr(timing, f"{part}_ms") for timing in self.timings]

    def to_dict(self) -> dict[str, object]:
        """Return what `--json` prints."""
        return {
            "model": self.model,
            "version": self.version,
            "pack_id": self.pack_id,
            "labels": list(self.labels),
            "outputs": self.outputs.tolist(),
            "n": len(self.timings),
            "latency_ms": self.latency_ms(),
            "bytes_up": sum(timing.bytes_up for timing in self.timings),
            "bytes_down": sum(timing.bytes_down for timing in self.timings),
        }

    def lines(self) -> list[str]:
        """Return the timing for people."""
        lines = [f"{self.model} {self.version}, pack {self.pack_id[:16]}…, n={len(self.timings)}"]
        for part, values in self.latency_ms().items():
            text = (
                "unknown"
                if values is None
                else f"p50 {values['p50']:8.1f} ms   p99 {values['p99']:8.1f} ms"
            )
            lines.append(f"{part:<8} {text}")
        up = sum(timing.bytes_up for timing in self.timings)
        down = sum(timing.bytes_down for timing in self.timings)
        lines.append(f"bytes    {up} up, {down} down")
        return lines


def percentiles(values: Sequence[float | None]) -> dict[str, float] | None:
    """Return p50 and p99, or None when a value is unknown or there is none."""
    known = [value for value in values if value is not None]
    if not known or len(known) != len(values):
        return None
    p50, p99 = np.percentile(known, [50, 99])
    return {"p50": round(float(p50), 3), "p99": round(float(p99), 3)}


def predict(
    model: EncryptedModel,
    rows: Floats,
    *,
    out_of_range: OutOfRange,
    progress: Callable[[int], None],
) -> Report:
    """Predict row by row."""
    if rows.shape[1] != model.view.features:
        raise MalformedInput(f"the model takes {model.view.features} numbers, not {rows.shape[1]}")
    outputs, timings = [], []
    for number, row in enumerate(rows, start=1):
        outputs.append(model.predict(row, out_of_range=out_of_range))
        if model.last_timing is not None:
            timings.append(model.last_timing)
        progress(number)
    view = model.view
    return Report(
        view.name, view.version, view.pack_id, model.labels, np.array(outputs), tuple(timings)
    )
