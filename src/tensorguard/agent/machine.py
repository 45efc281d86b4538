"""The machine's own metrics, read from /proc and /sys; what is not there is left out, never invented.

Names and units follow OpenTelemetry's conventions for system metrics.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tensorguard.agent.records import Record, record
from tensorguard.agent.spool import Spool

MAX_FILE: Final = 64 * 1024
MAX_ZONES: Final = 32
KIB: Final = 1024
BUSY_FIELDS: Final = 8  # user … steal of /proc/stat; the guest's time is in the user's
IDLE: Final = (3, 4)  # idle, iowait


@dataclass(frozen=True, slots=True)
class _Reading:
    name: str
    value: float
    unit: str
    labels: dict[str, str]


class Machine:
    """Reads the metrics of the machine that it runs on."""

    def __init__(self, folder: Path, root: Path = Path("/")) -> None:
        self._folder = folder
        self._root = root
        self._ticks: tuple[int, int] | None = None

    def records(self, *, now_ns: int, spool: Spool) -> list[Record]:
        """Return the metrics of now, the spool's own among them."""
        readings = [*self._cpu(), *self._memory(), *self._disk(), *self._heat(), *_spool(spool)]
        return [record(r.name, r.value, ts=now_ns, labels=r.labels, unit=r.unit) for r in readings]

    def _read(self, path: str) -> str:
        try:
            with (self._root / path).open(encoding="ascii", errors="replace") as file:
                return file.read(MAX_FILE)
        except OSError:
            return ""

    def _cpu(self) -> Iterator[_Reading]:
        words = self._read("proc/stat").partition("\n")[0].split()
        if len(words) > BUSY_FIELDS and words[0] == "cpu" and all(w.isdigit() for w in words[1:]):
            ticks = [int(word) for word in words[1 : BUSY_FIELDS + 1]]
            total, idle = sum(ticks), sum(ticks[place] for place in IDLE)
            before, self._ticks = self._ticks, (total, idle)
            if before is not None and total > before[0]:
                busy = 1 - (idle - before[1]) / (total - before[0])
                yield _Reading("system.cpu.utilization", min(max(busy, 0.0), 1.0), "1", {})
        load = self._read("proc/loadavg").split()
        if load and load[0].replace(".", "", 1).isdigit():
            yield _Reading("system.cpu.load_average.1m", float(load[0]), "{thread}", {})

    def _memory(self) -> Iterator[_Reading]:
        found = {}
        for line in self._read("proc/meminfo").splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if words and words[0].isdigit():
                found[name] = int(words[0]) * KIB
        if "MemTotal" in found and "MemAvailable" in found:
            used = found["MemTotal"] - found["MemAvailable"]
            yield _Reading("system.memory.usage", used, "By", {"state": "used"})
            yield _Reading("system.memory.usage", found["MemAvailable"], "By", {"state": "free"})

    def _disk(self) -> Iterator[_Reading]:
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return
        free = found.f_bavail * found.f_frsize
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        labels = {"mountpoint": str(self._folder)}
        yield _Reading("system.filesystem.usage", used, "By", {**labels, "state": "used"})
        yield _Reading("system.filesystem.usage", free, "By", {**labels, "state": "free"})

    def _heat(self) -> Iterator[_Reading]:
        for number in range(MAX_ZONES):
            zone = f"sys/class/thermal/thermal_zone{number}"
            text = self._read(f"{zone}/temp").strip()
            if not text:
                return
            kind = self._read(f"{zone}/type").strip() or "unknown"
            if text.lstrip("-").isdigit():
                labels = {"id": str(number), "sensor": kind[:64]}
                yield _Reading("hw.temperature", int(text) / 1000, "Cel", labels)


def _spool(spool: Spool) -> Iterator[_Reading]:
    for priority, level in spool.levels().items():
        labels = {"priority": priority.name}
        yield _Reading("tensorguard.agent.waiting", level.waiting, "{sample}", labels)
        yield _Reading("tensorguard.agent.dropped", level.dropped, "{sample}", labels)
