"""What the quickstart shows: steps and progress on stderr, a table or one JSON object at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from episodes import Measurement
    from fleet import Login


@dataclass(frozen=True)
class Quantiles:
    """Median and 99th percentile, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Latency:
    """Of one encrypted step: in all, and where it went."""

    p50: float
    p99: float
    client: Quantiles
    network: Quantiles
    server: Quantiles


@dataclass(frozen=True)
class Report:
    """All that was measured, under the names that `--json` prints."""

    backend: str
    episodes: int
    steps: int
    return_expert: float
    return_plaintext: float
    return_encrypted: float
    max_action_error: float
    latency_ms: Latency
    bytes_up: int
    bytes_down: int
    evaluation_key_bytes: int
    samples_sent: int
    samples_acked: int
    samples_stored: int
    seconds: float

    @classmethod
    def of(cls, measured: Measurement, *, stored: int, backend: str) -> Report:
        """Put the figures of a measurement and the database's own count together."""
        return cls(
            backend=backend,
            episodes=measured.episodes,
            steps=measured.steps,
            return_expert=measured.mean_return("expert"),
            return_plaintext=measured.mean_return("plaintext"),
            return_encrypted=measured.mean_return("encrypted"),
            max_action_error=measured.max_action_error,
            latency_ms=Latency(
                **asdict(measured.quantiles("total")),
                client=measured.quantiles("client"),
                network=measured.quantiles("network"),
                server=measured.quantiles("server"),
            ),
            bytes_up=measured.bytes_up,
            bytes_down=measured.bytes_down,
            evaluation_key_bytes=measured.evaluation_key_bytes,
            samples_sent=measured.sent,
            samples_acked=measured.acknowledged,
            samples_stored=stored,
            seconds=(measured.ended - measured.began).total_seconds(),
        )


class Bar:
    """A progress bar that only knows how to advance."""

    def __init__(self, progress: Progress, total: int, text: str) -> None:
        self._progress = progress
        self._task = progress.add_task(text, total=total)

    def advance(self) -> None:
        """Move on by one."""
        self._progress.advance(self._task)


class Show:
    """Steps, progress and results."""

    def __init__(self, console: Console, *, as_json: bool, began: float) -> None:
        self._console = console
        self._as_json = as_json
        self._began = began

    def step(self, text: str, detail: str) -> None:
        """Say that one step is done."""
        seconds = time.monotonic() - self._began
        line = f"{seconds:6.1f} s  {text}  ({detail})"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def progress(self, text: str, *, total: int) -> Iterator[Bar]:
        """Show a bar while a loop runs."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            yield Bar(progress, total, text)

    def result(self, report: Report) -> None:
        """Print the JSON object, or the table."""
        if self._as_json:
            print(json.dumps(asdict(report)), flush=True)
            return
        latency = report.latency_ms
        table = Table(title=f"Reacher-v5, {report.episodes} episodes of each policy, same seeds")
        table.add_column("measured")
        table.add_column("value", justify="right")
        rows = [
            ("backend", report.backend),
            ("mean return, expert", f"{report.return_expert:.4f}"),
            ("mean return, plaintext policy", f"{report.return_plaintext:.4f}"),
            ("mean return, encrypted policy", f"{report.return_encrypted:.4f}"),
            ("max action difference", f"{report.max_action_error:.2e}"),
            ("encrypted step p50 / p99", f"{latency.p50:.1f} / {latency.p99:.1f} ms"),
            ("  client", f"{latency.client.p50:.1f} / {latency.client.p99:.1f} ms"),
            ("  network", f"{latency.network.p50:.1f} / {latency.network.p99:.1f} ms"),
            ("  server", f"{latency.server.p50:.1f} / {latency.server.p99:.1f} ms"),
            ("bytes up / down per step", f"{report.bytes_up:,} / {report.bytes_down:,}"),
            ("evaluation keys, once", f"{report.evaluation_key_bytes:,} bytes"),
            (
                "samples sent / acknowledged / stored",
                f"{report.samples_sent:,} / {report.samples_acked:,} / {report.samples_stored:,}",
            ),
        ]
        for row in rows:
            table.add_row(*row)
        Console().print(table)

    def stay(self, platform: str, serving: str, login: Login, folder: Path) -> None:
        """Say where everything is, and how to end it."""
        lines = (
            "",
            f"platform   {platform}   (GET /ready, /metrics; API under /api/v1)",
            f"gateway    {serving}   (GET /ready, /metrics, /v1/models)",
            (
                f"sign in    tenant {login.tenant}, user {login.username}, "
                f"password in {login.password_file}"
            ),
            f"data       {folder}",
            "Ctrl-C ends both servers; the next start reuses what is there.",
        )
        for line in lines:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
