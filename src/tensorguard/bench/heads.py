"""The networks that the inference bench evaluates, trained here from nothing but a seed.

All use one polynomial for a whole layer, so that a naive TenSEAL program can evaluate the very same.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tensorguard.moai.compile.fit import MARGIN
from tensorguard.moai.compile.network import Activation, Dense, Network

Floats = npt.NDArray[np.float64]
LINKS = (0.10, 0.11)  # metres: the arm of Reacher-v5
CUBIC = (0.0, 1.0, 0.25, -0.1)  # 1, x, x^2, x^3: what the policy head is trained with
_STEPS, _BATCH, _RATE = 1500, 256, 3e-3


@dataclass(frozen=True, eq=False)
class Head:
    """A network with data to calibrate it and to measure it on.

    Of an `elementwise` one the naive program evaluates the polynomial only. With `batch`, so many
    inputs are evaluated together. The largest output of one with `classes` is its answer.
    """

    network: Network
    calibration: Floats
    inputs: Floats
    elementwise: bool = False
    batch: int = 0
    classes: bool = False


def matvec(size: int, *, seed: int) -> Head:
    """Return one dense `size` x `size` layer on uniform inputs."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(size, size)) / np.sqrt(size)
    layer = Dense("dense0", weight, rng.normal(size=size) / 10, None)
    data = rng.uniform(-1, 1, (512, size))
    return Head(_network((layer,), data, standardise=False), data, data[:64])


def reacher_policy(*, seed: int) -> Head:
    """Return a 10-64-2 head with a cubic activation, fitted to the analytic Reacher controller."""
    rng = np.random.default_rng(seed)
    observations, actions = reacher_states(4096, rng)
    mean, std = observations.mean(axis=0), observations.std(axis=0)
    scale, offset = actions.std(axis=0), actions.mean(axis=0)
    weights = _train((observations - mean) / std, (actions - offset) / scale, rng)
    layers = (
        Dense("dense0", weights[0], weights[1], Activation("polynomial", CUBIC)),
        Dense("dense1", weights[2], weights[3], None),
    )
    network = Network(layers, mean, std, output_scale=scale, output_offset=offset)
    return Head(network, observations, observations[:64])


def digits(*, seed: int, hidden: tuple[int, ...] = (32,)) -> Head:
    """Return a 64-…-10 classifier of scikit-learn's digits with one cubic in place of each tanh."""
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    images, labels = load_digits(return_X_y=True)
    data = np.asarray(images, dtype=np.float64) / 16
    classifier = MLPClassifier(hidden, activation="tanh", random_state=seed, max_iter=40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a bench needs no last percent
        classifier.fit(data, labels)
    layers, values = [], data
    for index, (weight, bias) in enumerate(
        zip(classifier.coefs_, classifier.intercepts_, strict=True)
    ):
        before = values @ weight + bias
        cubic: Activation | None = None
        if index < len(hidden):
            fitted = np.polynomial.polynomial.polyfit(before.ravel(), np.tanh(before).ravel(), 3)
            cubic = Activation("polynomial", tuple(fitted.tolist()))
            values = cubic(before)
        layers.append(Dense(f"dense{index}", np.asarray(weight, np.float64).T, bias, cubic))
    network = _network(tuple(layers), data, standardise=False)
    return Head(network, data, data[:64], classes=True)


def digits_batch(samples: int, *, seed: int) -> Head:
    """Return the 64-32-10 classifier of digits, for batches of so many images."""
    head = digits(seed=seed)
    inputs = np.resize(head.calibration, (samples, head.calibration.shape[1]))
    return replace(head, inputs=inputs, batch=samples)


def chebyshev(degree: int) -> Head:
    """Return one sigmoid tanh(6 x) on [-1, 1] as a polynomial, on single values."""
    nodes = np.polynomial.chebyshev.chebpts1(degree + 1)
    coefficients = np.polynomial.chebyshev.chebfit(nodes, np.tanh(6 * nodes), degree)
    one, zero = np.eye(1), np.zeros(1)
    polynomial = Activation("polynomial", tuple(coefficients.tolist()), "chebyshev")
    layers = (Dense("dense0", one, zero, polynomial), Dense("dense1", one, zero, None))
    inputs = np.linspace(-1, 1, 64)[:, None]
    calibration = inputs / (1 + MARGIN)  # the margin ends at the interval's ends
    network = _network(layers, calibration, standardise=False)
    return Head(network, calibration, inputs, elementwise=True)


def adapter(size: int, rank: int, *, seed: int) -> Head:
    """Return the two products of a low-rank adapter, `size` to `rank` to `size`."""
    rng = np.random.default_rng(seed)
    down = rng.normal(size=(rank, size)) / np.sqrt(size)
    up = rng.normal(size=(size, rank)) / np.sqrt(rank)
    layers = (
        Dense("dense0", down, np.zeros(rank), None),
        Dense("dense1", up, np.zeros(size), None),
    )
    data = rng.uniform(-1, 1, (512, size))
    return Head(_network(layers, data, standardise=False), data, data[:64])


def reacher_states(count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Sample joint states of the arm: observations (count, 10) and the controller's actions.

    Controller: clip(J(q)^T (target - fingertip) 10 - 0.05 qdot, -1, 1), from Reacher-v5's own
    observation (cosines, sines, target, velocities, fingertip - target).
    """
    q = rng.uniform(-np.pi, np.pi, (count, 2))
    velocity = rng.normal(scale=1.0, size=(count, 2))
    angle = rng.uniform(-np.pi, np.pi, count)
    target = (0.2 * np.sqrt(rng.uniform(size=count))) * np.array([np.cos(angle), np.sin(angle)])
    first, second = q[:, 0], q.sum(axis=1)
    tip = LINKS[0] * np.array([np.cos(first), np.sin(first)])
    tip = tip + LINKS[1] * np.array([np.cos(second), np.sin(second)])
    gap = tip - target
    outer = LINKS[1] * np.array([-np.sin(second), np.cos(second)])
    inner = LINKS[0] * np.array([-np.sin(first), np.cos(first)]) + outer
    torque = -10 * np.array([(inner * gap).sum(axis=0), (outer * gap).sum(axis=0)]).T
    actions = np.clip(torque - 0.05 * velocity, -1, 1)
    return np.column_stack([np.cos(q), np.sin(q), target.T, velocity, gap.T]), actions


def spread(rows: Floats, count: int) -> Floats:
    """Return at most `count` of the rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return np.asarray(rows[np.arange(count) * len(rows) // count])


def _train(x: Floats, y: Floats, rng: np.random.Generator) -> list[Floats]:
    """Fit 10-64-2 with the cubic activation by Adam on the squared error."""
    cubic = np.array(CUBIC)
    slope = cubic[1:] * np.arange(1, len(cubic))
    value, derivative = np.polynomial.Polynomial(cubic), np.polynomial.Polynomial(slope)
    shapes = ((64, x.shape[1]), (64,), (y.shape[1], 64), (y.shape[1],))
    weights = [rng.normal(size=shape) * 0.3 / np.sqrt(shape[-1]) for shape in shapes]
    first = [np.zeros(shape) for shape in shapes]
    second = [np.zeros(shape) for shape in shapes]
    for step in range(1, _STEPS + 1):
        rows = rng.integers(0, len(x), _BATCH)
        h = x[rows] @ weights[0].T + weights[1]
        hidden = value(h)
        error = (hidden @ weights[2].T + weights[3] - y[rows]) / _BATCH
        back = (error @ weights[2]) * derivative(h)
        gradients = [back.T @ x[rows], back.sum(axis=0), error.T @ hidden, error.sum(axis=0)]
        rate = _RATE * (1 - step / (_STEPS + 1)) * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        for index, gradient in enumerate(gradients):
            first[index] += 0.1 * (gradient - first[index])
            second[index] += 0.001 * (gradient**2 - second[index])
            weights[index] = weights[index] - rate * first[index] / (np.sqrt(second[index]) + 1e-8)
    return weights


def _network(layers: tuple[Dense, ...], data: Floats, *, standardise: bool) -> Network:
    features, outputs = data.shape[1], len(layers[-1].bias)
    return Network(
        layers,
        mean=data.mean(axis=0) if standardise else np.zeros(features),
        std=data.std(axis=0) if standardise else np.ones(features),
        output_scale=np.ones(outputs),
        output_offset=np.zeros(outputs),
    )
