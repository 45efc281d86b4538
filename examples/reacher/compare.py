"""Why the head is trained with a cubic activation: what replacing tanh afterwards costs here.

Trains scikit-learn's tanh head on the same demonstrations, replaces tanh by a polynomial fitted by
least squares on the calibration data (one for the layer, or one for each unit), refits the last
layer by ridge least squares, and compares the two heads at the same observations in closed loop.
No encryption is involved: these errors come before CKKS adds its own.

    python examples/reacher/compare.py [--episodes 30]
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np
from arm import Arm, Policy, Vector
from numpy.polynomial import Polynomial
from sklearn.neural_network import MLPRegressor
from train import HIDDEN, Demonstrations, collect, evaluate, fit

RIDGE = 1e-8  # per row; larger values were worse
ROWS = 5000  # calibration rows


class TanhHead:
    """The head as scikit-learn trains it, with what is needed to replace its activation."""

    def __init__(self, demonstrations: Demonstrations, *, alpha: float, seed: int) -> None:
        observations, commands = demonstrations.observations, demonstrations.commands
        self._mean, self._scale = observations.mean(axis=0), observations.std(axis=0)
        self._output_mean, self._output_scale = commands.mean(axis=0), commands.std(axis=0)
        network = MLPRegressor(
            hidden_layer_sizes=(HIDDEN,),
            activation="tanh",
            alpha=alpha,
            max_iter=300,
            random_state=seed,
        )
        network.fit(
            (observations - self._mean) / self._scale,
            (commands - self._output_mean) / self._output_scale,
        )
        (self._first, self._second), (self._first_bias, self._second_bias) = (
            network.coefs_,
            network.intercepts_,
        )
        self._calibration = self._hidden(observations[-ROWS:])

    def __call__(self, observation: Vector) -> Vector:
        answer = np.tanh(self._hidden(observation)) @ self._second + self._second_bias
        return np.asarray(answer * self._output_scale + self._output_mean)

    def replaced(self, degree: int, *, per_unit: bool) -> Policy:
        """Return the same head with polynomials for tanh and a last layer fitted to them."""
        rows = self._calibration
        groups = rows.T if per_unit else rows.reshape(1, -1)
        fitted = [Polynomial.fit(group, np.tanh(group), degree) for group in groups]
        polynomials = fitted if per_unit else fitted * HIDDEN

        def activate(hidden: Vector) -> Vector:
            units = [curve(hidden[..., unit]) for unit, curve in enumerate(polynomials)]
            return np.stack([*units, np.ones_like(units[0])], axis=-1)

        features = activate(rows)
        wanted = np.tanh(rows) @ self._second + self._second_bias
        normal = features.T @ features + RIDGE * len(rows) * np.eye(HIDDEN + 1)
        last = np.linalg.solve(normal, features.T @ wanted)

        def policy(observation: Vector) -> Vector:
            answer = activate(self._hidden(observation)) @ last
            return np.asarray(answer * self._output_scale + self._output_mean)

        return policy

    def _hidden(self, observations: Vector) -> Vector:
        standardised = (observations - self._mean) / self._scale
        return np.asarray(standardised @ self._first + self._first_bias)


def main() -> None:
    """Print a row per variant: mean returns and the largest and the RMS action difference."""
    parser = argparse.ArgumentParser(description="Compare the tanh route with the cubic head.")
    parser.add_argument("--episodes", type=int, default=30)
    seeds = range(parser.parse_args().episodes)
    with Arm() as arm:
        demonstrations = collect(arm, seed=0)
        cubic = np.mean([run.total for run in evaluate(arm, fit(demonstrations, seed=0), seeds)])
        print(f"cubic head: return {cubic:.3f}, and the encrypted head is the same function")
        for alpha in (1e-4, 0.1, 3.0):
            head = TanhHead(demonstrations, alpha=alpha, seed=0)
            plain = np.mean([run.total for run in evaluate(arm, head, seeds)])
            for degree, per_unit in product((3, 5), (False, True)):
                runs = evaluate(arm, head.replaced(degree, per_unit=per_unit), seeds)
                seen = np.concatenate([run.observations for run in runs])
                error = np.concatenate([run.commands for run in runs]) - head(seen)
                print(
                    f"tanh alpha {alpha:<6} degree {degree} {'unit ' if per_unit else 'layer'}: "
                    f"return {plain:.3f} -> {np.mean([run.total for run in runs]):.3f}, "
                    f"action error max {np.abs(error).max():.4f} rms {np.sqrt(np.mean(error**2)):.4f}"
                )


if __name__ == "__main__":
    main()
