"""The measured run: the same seeds under three policies, every step's telemetry on its way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import numpy as np
from arm import CHANNELS, EPISODE_STEPS, Arm, Policy, Step, Vector, run_episode
from console import Quantiles, Show

from tensorguard.sdk import DeviceIdentity, EncryptedModel, TelemetryClient, Timing


class Telemetry:
    """Streams the arm's joints: one sample for each channel and step."""

    def __init__(self, url: str, device: DeviceIdentity) -> None:
        self._client = TelemetryClient(url, device.access_token)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stream(self, step: Step, policy: str) -> None:
        """Queue the readings of one step."""
        now = time.time_ns()
        for channel, value in zip(CHANNELS, step.readings(), strict=True):
            labels = {"policy": policy}
            self._client.record(channel.name, value, ts=now, labels=labels, unit=channel.unit)

    def finish(self) -> tuple[int, int]:
        """Send what is queued; return the samples sent and those acknowledged."""
        self._client.flush()
        return self._client.counts.sent, self._client.counts.acknowledged


@dataclass
class Measurement:
    """What the run showed. Returns are sums of rewards; times are milliseconds."""

    began: datetime
    ended: datetime
    evaluation_key_bytes: int
    returns: dict[str, list[float]] = field(default_factory=dict)
    timings: list[Timing] = field(default_factory=list)
    max_action_error: float = 0.0
    sent: int = 0
    acknowledged: int = 0

    @property
    def episodes(self) -> int:
        """Episodes that all three policies ran."""
        return len(self.returns["expert"])

    @property
    def steps(self) -> int:
        """Encrypted steps."""
        return len(self.timings)

    @property
    def bytes_up(self) -> int:
        """Bytes of one request, the median."""
        return int(np.median([timing.bytes_up for timing in self.timings]))

    @property
    def bytes_down(self) -> int:
        """Bytes of one answer, the median."""
        return int(np.median([timing.bytes_down for timing in self.timings]))

    def mean_return(self, policy: str) -> float:
        """Mean return over the episodes that all policies ran."""
        return float(np.mean(self.returns[policy][: self.episodes]))

    def quantiles(self, part: str) -> Quantiles:
        """Median and 99th percentile of one part of the latency."""
        values = [getattr(timing, f"{part}_ms") for timing in self.timings]
        known = [value for value in values if value is not None]
        return Quantiles(float(np.percentile(known, 50)), float(np.percentile(known, 99)))


class Encrypted:
    """The served policy, compared with the plaintext one at every observation that it sees."""

    def __init__(self, model: EncryptedModel, plaintext: Policy, measured: Measurement) -> None:
        self._model = model
        self._plaintext = plaintext
        self._measured = measured

    def __call__(self, observation: Vector) -> Vector:
        """Return the decrypted action for one observation."""
        action = self._model.predict(observation, out_of_range="clip")
        if self._model.last_timing is not None:
            self._measured.timings.append(self._model.last_timing)
        difference = float(np.abs(action - self._plaintext(observation)).max())
        self._measured.max_action_error = max(self._measured.max_action_error, difference)
        return action


def run_policies(
    arm: Arm,
    *,
    policies: Sequence[tuple[str, Policy]],
    model: EncryptedModel,
    telemetry: Telemetry,
    seed: int,
    episodes: int,
    seconds: float,
    show: Show,
) -> Measurement:
    """Run `episodes` of each policy, the encrypted one last, and longer if `seconds` say so.

    `policies` holds the expert and the plaintext policy by name.
    """
    now = datetime.now(UTC)
    measured = Measurement(now, now, model.evaluation_key_bytes)
    began = time.monotonic()
    every = [*policies, ("encrypted", Encrypted(model, dict(policies)["plaintext"], measured))]
    for name, policy in every:
        totals = measured.returns.setdefault(name, [])
        with show.progress(f"Episodes, {name}", total=episodes * EPISODE_STEPS) as bar:

            def watch(step: Step, name: str = name) -> None:
                telemetry.stream(step, name)
                bar.advance()

            more = name == "encrypted"
            while len(totals) < episodes or (more and time.monotonic() - began < seconds):
                totals.append(run_episode(arm, policy, seed + len(totals), on_step=watch).total)
    measured.sent, measured.acknowledged = telemetry.finish()
    measured.ended = datetime.now(UTC)
    return measured
