"""One form of result for every bench (DESIGN 10): medians with spread, ratios with bars."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np

from tensorguard import __version__


@dataclass(frozen=True, slots=True)
class Result:
    """One metric of one variant: the median of `n` measurements, and their 10th and 90th percentile."""

    case: str
    variant: str
    metric: str
    unit: str
    n: int
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, case: str, variant: str, metric: str, unit: str, values: Sequence[float]) -> Result:
        """Summarise measurements."""
        p10, median, p90 = (float(v) for v in np.percentile(values, [10, 50, 90]))
        return cls(case, variant, metric, unit, len(values), median, p10, p90)

    @classmethod
    def root_mean_square(
        cls, case: str, variant: str, metric: str, unit: str, squares: Sequence[float]
    ) -> Result:
        """Summarise mean squares: `median` is the root of their mean, the percentiles are of roots."""
        p10, p90 = (float(v) for v in np.sqrt(np.percentile(squares, [10, 90])))
        total = float(np.sqrt(np.mean(squares)))
        return cls(case, variant, metric, unit, len(squares), total, p10, p90)

    @classmethod
    def single(
        cls, case: str, variant: str, metric: str, unit: str, value: float, *, n: int
    ) -> Result:
        """Give one number that is about `n` samples together, such as a share of them."""
        return cls(case, variant, metric, unit, n, value, value, value)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times less `variant` takes than `against`. `bar` is null where nothing is promised.

    Of the metric "argmax" it is the share of `against` that `variant` has.
    """

    case: str
    variant: str
    against: str
    metric: str
    value: float
    bar: float | None
    holds: bool | None

    @classmethod
    def at_least(cls, of: Result, against: Result, value: float, bar: float | None) -> Ratio:
        """Hold `value`, of the one result against the other, to a bar."""
        holds = None if bar is None else value >= bar
        return cls(of.case, of.variant, against.variant, of.metric, value, bar, holds)


@dataclass(frozen=True, slots=True)
class Report:
    """What one bench prints."""

    bench: str
    commit: str
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    seed: int
    results: tuple[Result, ...]
    ratios: tuple[Ratio, ...]
    missing: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the JSON object."""
        return asdict(self)

    @property
    def failed(self) -> tuple[Ratio, ...]:
        """Return the ratios that are under their bar."""
        return tuple(ratio for ratio in self.ratios if ratio.holds is False)


def ratios(
    results: Sequence[Result],
    *,
    against: str,
    metrics: Sequence[str],
    bars: Mapping[tuple[str, str, str], float],
) -> tuple[Ratio, ...]:
    """Compare every variant with `against` in the same case; `bars` by case, variant, metric."""
    found: list[Ratio] = []
    for base in results:
        if base.variant != against or base.metric not in metrics:
            continue
        for other in results:
            if (other.case, other.metric) != (base.case, base.metric) or other is base:
                continue
            value = base.median / other.median
            bar = bars.get((other.case, other.variant, other.metric))
            found.append(Ratio.at_least(other, base, value, bar))
    return tuple(found)


def machine() -> dict[str, str | int]:
    """Describe this computer, without its name."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "architecture": platform.machine(),
    }


def versions(*distributions: str) -> dict[str, str]:
    """Return the versions of Python, of this package and of `distributions`."""
    found = {"python": platform.python_version(), "tensorguard": __version__}
    for name in distributions:
        found[name] = metadata.version(name)
    return found


def commit() -> str:
    """Return the commit of the source tree, or "unknown" outside of one."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    done = subprocess.run(
        [git, "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"
