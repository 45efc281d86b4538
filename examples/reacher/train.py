"""Behaviour cloning of the arm's controller into a head that CKKS can evaluate exactly as trained.

The head has one hidden layer of 64 units whose activation *is* a cubic polynomial, so that the
function trained here and the function evaluated under encryption are the same one; what is left
between them is CKKS noise. It costs four multiplicative levels (two linear layers, two for the
cubic), which fits N=8192. README.md has the numbers, and those of the route not taken (a tanh head
whose activation is replaced afterwards: `compare.py`).

Observations and actions are standardised: the actions are small (std 0.07 and 0.04) and a head
trained on raw values does not learn them. Noise on the applied commands, not on the recorded ones,
shows the expert what to do next to its own path; without it small errors add up in closed loop.

    python examples/reacher/train.py --out DIR [--episodes 200] [--seed 0]

writes the three files that a model pack is built from: `policy.safetensors`, `policy.layers.json`
and `calibration.npy`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arm import ACTION_SIZE, OBSERVATION_SIZE, Arm, Episode, Policy, Vector, controller, run_episode
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

COEFFICIENTS = (0.0, 0.5, 0.25, 0.1)  # x/2 + x^2/4 + x^3/10: monotone, and quadratic terms for free
HIDDEN = 64
FIRST_DEMONSTRATION_SEED = 1000  # evaluation uses seeds below this
EXPLORATION = 0.1  # std of the noise on the applied command
EPOCHS = 200
BATCH = 250
LEARNING_RATE = 1e-2
WEIGHT_DECAY = 1e-4  # keeps pre-activations small, so that less headroom is needed under CKKS
ADAM = (0.9, 0.999, 1e-8)

WEIGHTS_FILE = "policy.safetensors"
LAYERS_FILE = "policy.layers.json"
CALIBRATION_FILE = "calibration.npy"


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """What the expert saw and did: observations (n, 10), commands (n, 2)."""

    observations: Vector
    commands: Vector


@dataclass(frozen=True, slots=True)
class CubicPolicy:
    """The head: standardise, linear, cubic, linear, scale back. Weights are (outputs, inputs)."""

    input_mean: NDArray[np.float32]
    input_scale: NDArray[np.float32]
    hidden_weight: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    coefficients: tuple[float, ...]
    output_weight: NDArray[np.float32]
    output_bias: NDArray[np.float32]
    output_mean: NDArray[np.float32]
    output_scale: NDArray[np.float32]

    def __call__(self, observation: Vector) -> Vector:
        """Return the command(s) for one observation (10,) or a batch (n, 10), not clipped."""
        standardised = (observation - self.input_mean) / self.input_scale
        hidden = standardised @ self.hidden_weight.T.astype(np.float64) + self.hidden_bias
        activated = np.polynomial.polynomial.polyval(hidden, self.coefficients)
        answer = activated @ self.output_weight.T.astype(np.float64) + self.output_bias
        return np.asarray(answer * self.output_scale + self.output_mean, dtype=np.float64)


def collect(
    arm: Arm,
    *,
    seed: int,
    episodes: int = 200,
    expert: Policy = controller,
    on_episode: Callable[[Episode], None] | None = None,
) -> Demonstrations:
    """Let the expert drive `episodes` episodes while noise disturbs it, and record its commands."""
    rng = np.random.default_rng([seed, 0])

    def disturb(command: Vector) -> Vector:
        return command + rng.normal(0.0, EXPLORATION, ACTION_SIZE)

    recorded: list[Episode] = []
    for number in range(episodes):
        first = FIRST_DEMONSTRATION_SEED
        recorded.append(run_episode(arm, expert, first + number, perturb=disturb))
        if on_episode is not None:
            on_episode(recorded[-1])
    return Demonstrations(
        np.concatenate([episode.observations for episode in recorded]),
        np.concatenate([episode.commands for episode in recorded]),
    )


def fit(
    demonstrations: Demonstrations,
    *,
    seed: int,
    epochs: int = EPOCHS,
    on_epoch: Callable[[int, float], None] | None = None,
) -> CubicPolicy:
    """Train the head by Adam on the squared error of standardised commands; the seed decides all.

    `on_epoch` gets the number of finished epochs and the mean squared error of the last one, in
    units of the commands' variance.
    """
    input_mean, input_scale = _standardisation(demonstrations.observations)
    output_mean, output_scale = _standardisation(demonstrations.commands)
    inputs = (demonstrations.observations - input_mean) / input_scale
    targets = (demonstrations.commands - output_mean) / output_scale
    rng = np.random.default_rng([seed, 1])
    weights = [
        rng.normal(0.0, OBSERVATION_SIZE**-0.5, (OBSERVATION_SIZE, HIDDEN)),
        rng.normal(0.0, 0.5, HIDDEN),
        rng.normal(0.0, HIDDEN**-0.5, (HIDDEN, ACTION_SIZE)),
        np.zeros(ACTION_SIZE),
    ]
    optimiser = _Adam(weights, steps=epochs * _batches(len(inputs)))
    for epoch in range(epochs):
        losses = []
        for rows in np.array_split(rng.permutation(len(inputs)), _batches(len(inputs))):
            loss, gradients = _gradients(weights, inputs[rows], targets[rows])
            optimiser.update(weights, gradients)
            losses.append(loss)
        if on_epoch is not None:
            on_epoch(epoch + 1, float(np.mean(losses)))
    return CubicPolicy(
        input_mean.astype(np.float32),
        input_scale.astype(np.float32),
        np.ascontiguousarray(weights[0].T, dtype=np.float32),
        weights[1].astype(np.float32),
        COEFFICIENTS,
        np.ascontiguousarray(weights[2].T, dtype=np.float32),
        weights[3].astype(np.float32),
        output_mean.astype(np.float32),
        output_scale.astype(np.float32),
    )


def evaluate(arm: Arm, policy: Policy, seeds: Sequence[int]) -> list[Episode]:
    """Run one undisturbed episode per seed."""
    return [run_episode(arm, policy, seed) for seed in seeds]


def save(policy: CubicPolicy, demonstrations: Demonstrations, folder: Path) -> None:
    """Write weights, layer description and calibration observations into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "hidden.weight": policy.hidden_weight,
        "hidden.bias": policy.hidden_bias,
        "output.weight": policy.output_weight,
        "output.bias": policy.output_bias,
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    description = {
        "input": {
            "features": OBSERVATION_SIZE,
            "mean": _numbers(policy.input_mean),
            "std": _numbers(policy.input_scale),
        },
        "layers": [
            {"kind": "linear", "weight": "hidden.weight", "bias": "hidden.bias"},
            {"kind": "polynomial", "coefficients": list(policy.coefficients)},
            {"kind": "linear", "weight": "output.weight", "bias": "output.bias"},
        ],
        "output": {
            "scale": _numbers(policy.output_scale),
            "offset": _numbers(policy.output_mean),
        },
    }
    text = json.dumps(description, indent=2) + "\n"
    (folder / LAYERS_FILE).write_text(text, encoding="utf-8")
    np.save(folder / CALIBRATION_FILE, demonstrations.observations, allow_pickle=False)


def load(folder: Path) -> CubicPolicy:
    """Read back what `save` wrote."""
    tensors = load_file(folder / WEIGHTS_FILE)
    description = json.loads((folder / LAYERS_FILE).read_text(encoding="utf-8"))
    return CubicPolicy(
        np.asarray(description["input"]["mean"], dtype=np.float32),
        np.asarray(description["input"]["std"], dtype=np.float32),
        tensors["hidden.weight"],
        tensors["hidden.bias"],
        tuple(description["layers"][1]["coefficients"]),
        tensors["output.weight"],
        tensors["output.bias"],
        np.asarray(description["output"]["offset"], dtype=np.float32),
        np.asarray(description["output"]["scale"], dtype=np.float32),
    )


class _Adam:
    """Adam (Kingma and Ba, 2015) with a cosine learning rate that ends at zero."""

    def __init__(self, weights: list[Vector], *, steps: int) -> None:
        self._mean = [np.zeros_like(weight) for weight in weights]
        self._square = [np.zeros_like(weight) for weight in weights]
        self._steps = steps
        self._done = 0

    def update(self, weights: list[Vector], gradients: list[Vector]) -> None:
        """Take one step, changing `weights` in place."""
        keep_mean, keep_square, epsilon = ADAM
        self._done += 1
        rate = LEARNING_RATE * 0.5 * (1.0 + np.cos(np.pi * self._done / self._steps))
        for place, gradient in enumerate(gradients):
            mean = keep_mean * self._mean[place] + (1.0 - keep_mean) * gradient
            square = keep_square * self._square[place] + (1.0 - keep_square) * gradient**2
            self._mean[place], self._square[place] = mean, square
            unbiased = mean / (1.0 - keep_mean**self._done)
            spread = np.sqrt(square / (1.0 - keep_square**self._done)) + epsilon
            weights[place] -= rate * unbiased / spread


def _gradients(
    weights: list[Vector], inputs: Vector, targets: Vector
) -> tuple[float, list[Vector]]:
    """Return the mean squared error of a batch and its gradient for each weight, decay included."""
    hidden_weight, hidden_bias, output_weight, output_bias = weights
    _, linear, quadratic, cubic = COEFFICIENTS
    hidden = inputs @ hidden_weight + hidden_bias
    activated = ((cubic * hidden + quadratic) * hidden + linear) * hidden
    residual = activated @ output_weight + output_bias - targets
    outer = residual * (2.0 / len(inputs))
    slope = (3.0 * cubic * hidden + 2.0 * quadratic) * hidden + linear
    inner = (outer @ output_weight.T) * slope
    return float(np.mean(residual**2)), [
        inputs.T @ inner + WEIGHT_DECAY * hidden_weight,
        inner.sum(axis=0),
        activated.T @ outer + WEIGHT_DECAY * output_weight,
        outer.sum(axis=0),
    ]


def _standardisation(values: Vector) -> tuple[Vector, Vector]:
    # Rounded to what the files hold, so that training and use scale alike.
    mean = values.mean(axis=0).astype(np.float32).astype(np.float64)
    scale = values.std(axis=0).astype(np.float32).astype(np.float64)
    return mean, scale


def _batches(rows: int) -> int:
    return -(-rows // BATCH)


def _numbers(values: NDArray[np.float32]) -> list[float]:
    return [float(value) for value in values]


def main() -> None:
    """Collect, train, write the files and print what was reached."""
    parser = argparse.ArgumentParser(description="Train the Reacher policy head.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the three files")
    parser.add_argument("--episodes", type=int, default=200, help="demonstrations to collect")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with Arm() as arm:
        begin = time.perf_counter()
        demonstrations = collect(arm, seed=arguments.seed, episodes=arguments.episodes)
        collected = time.perf_counter()
        policy = fit(demonstrations, seed=arguments.seed)
        fitted = time.perf_counter()
        expert = evaluate(arm, controller, range(30))
        cloned = evaluate(arm, policy, range(30))
    save(policy, demonstrations, arguments.out)
    print(f"demonstrations   {len(demonstrations.commands)} steps in {collected - begin:.1f} s")
    print(f"training         {fitted - collected:.1f} s")
    print(f"return, expert   {np.mean([episode.total for episode in expert]):.3f}  (seeds 0-29)")
    print(f"return, head     {np.mean([episode.total for episode in cloned]):.3f}  (seeds 0-29)")


if __name__ == "__main__":
    main()
