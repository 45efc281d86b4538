"""One simulated robot: a MuJoCo Reacher-v5 arm that is stepped, observed and read, and nothing else.

A policy here is any function from one observation to two motor commands. Whoever computes the
command (the analytic controller, a trained head, a gateway that sees only ciphertexts) drives the
arm through the same `run_episode`, so their returns can be compared seed by seed.

The observation of Reacher-v5 has ten values:

    0, 1   cos of the joint angles q0, q1
    2, 3   sin of the joint angles
    4, 5   target x, y                               m
    6, 7   joint velocities                          rad/s
    8, 9   fingertip minus target, x and y           m

An action holds two motor commands in [-1, 1]; the motors' gear makes a command of 1 a joint torque
of 200 N.m. An episode has 50 steps of 0.02 s; its return is the sum over its steps of
-(distance to the target) - |action|^2, so it is negative and nearer to zero is better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import gymnasium
import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Policy = Callable[[Vector], Vector]

OBSERVATION_SIZE = 10
ACTION_SIZE = 2
EPISODE_STEPS = 50
STEP_SECONDS = 0.02
LINKS = (0.10, 0.11)  # m: shoulder to elbow, elbow to fingertip
GEAR = 200.0  # N.m of joint torque per unit of command
POSITION_GAIN = 10.0
VELOCITY_GAIN = 0.05


@dataclass(frozen=True, slots=True)
class Channel:
    """One telemetry series of the arm; the unit is written in UCUM, as OTLP asks."""

    name: str
    unit: str


CHANNELS = (
    Channel("arm.joint0.angle", "rad"),
    Channel("arm.joint1.angle", "rad"),
    Channel("arm.joint0.velocity", "rad/s"),
    Channel("arm.joint1.velocity", "rad/s"),
    Channel("arm.joint0.torque", "N.m"),
    Channel("arm.joint1.torque", "N.m"),
    Channel("arm.target.distance", "m"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One control step: what the arm saw, what the policy asked for, what the motors were given."""

    index: int
    observation: Vector
    command: Vector  # the policy's answer, within [-1, 1]
    applied: Vector  # the command after exploration noise, within [-1, 1]
    reward: float

    @property
    def seconds(self) -> float:
        """Return the simulated time of the observation since the episode began, in seconds."""
        return self.index * STEP_SECONDS

    def readings(self) -> tuple[float, ...]:
        """Return the telemetry of this step, one value per entry of CHANNELS, in its unit."""
        cos0, cos1, sin0, sin1 = self.observation[:4]
        torque = GEAR * self.applied
        return (
            float(np.arctan2(sin0, cos0)),
            float(np.arctan2(sin1, cos1)),
            float(self.observation[6]),
            float(self.observation[7]),
            float(torque[0]),
            float(torque[1]),
            float(np.hypot(self.observation[8], self.observation[9])),
        )


@dataclass(frozen=True, slots=True)
class Episode:
    """A finished episode: `observations` is (50, 10), `commands` is (50, 2), row per step."""

    seed: int
    total: float
    observations: Vector
    commands: Vector


class Arm:
    """Reacher-v5 without a window. Use it as a context manager."""

    def __init__(self) -> None:
        self._env = gymnasium.make("Reacher-v5")
        if self._env.observation_space.shape != (OBSERVATION_SIZE,):
            shape = self._env.observation_space.shape
            self._env.close()
            raise RuntimeError(
                f"Reacher-v5 should give 10 observations, this gymnasium gives {shape}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def reset(self, seed: int) -> Vector:
        """Put arm and target where `seed` says; return the first observation."""
        observation, _ = self._env.reset(seed=seed)
        return np.asarray(observation, dtype=np.float64)

    def step(self, command: Vector) -> tuple[Vector, float, bool]:
        """Apply one command for 0.02 s; return the next observation, the reward, and the end."""
        observation, reward, terminated, truncated, _ = self._env.step(command)
        return np.asarray(observation, dtype=np.float64), float(reward), terminated or truncated


def controller(observation: Vector) -> Vector:
    """Return the expert's command for one observation: pull the fingertip to the target, damped.

    clip(J(q)^T . (target - fingertip) . 10 - 0.05 . velocity, -1, 1), J the fingertip's Jacobian.
    """
    cos0, cos1, sin0, sin1 = observation[:4]
    upper, lower = LINKS
    x_lower = lower * (cos0 * cos1 - sin0 * sin1)  # elbow to fingertip, in the world's frame
    y_lower = lower * (sin0 * cos1 + cos0 * sin1)
    jacobian = np.array([[-upper * sin0 - y_lower, -y_lower], [upper * cos0 + x_lower, x_lower]])
    error = -observation[8:10]
    pull = POSITION_GAIN * (jacobian.T @ error)
    return np.clip(pull - VELOCITY_GAIN * observation[6:8], -1.0, 1.0)


def run_episode(
    arm: Arm,
    policy: Policy,
    seed: int,
    *,
    perturb: Policy | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Episode:
    """Run one episode from `seed` and return it.

    Commands are clipped to [-1, 1]. `perturb` changes the command that the motors get (exploration)
    but not the one that is recorded. `on_step` sees each step after it was applied.
    """
    observation = arm.reset(seed)
    steps: list[Step] = []
    done = False
    while not done:
        command = np.clip(np.asarray(policy(observation), dtype=np.float64), -1.0, 1.0)
        applied = command if perturb is None else np.clip(perturb(command), -1.0, 1.0)
        following, reward, done = arm.step(applied)
        steps.append(Step(len(steps), observation, command, applied, reward))
        if on_step is not None:
            on_step(steps[-1])
        observation = following
    return Episode(
        seed=seed,
        total=sum(step.reward for step in steps),
        observations=np.stack([step.observation for step in steps]),
        commands=np.stack([step.command for step in steps]),
    )
