"""A network becomes a graph of normalised layers: activations are fitted, every unit is about 1.

First all values are followed in their own units, each activation replaced by its fit on what really
comes. Then each unit gets a gain, by which it is divided; the layers that give and take it absorb
that. What a sum adds, and the sum itself, share one gain. What a product multiplies first has the
gain that makes the product right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tensorguard.moai import bases, graph
from tensorguard.moai.compile.fit import Fit, fit, moved, substitute
from tensorguard.moai.compile.network import Activation, Dense, Join, NetworkLayer, named
from tensorguard.moai.graph import Layer, Linear, Polynomial

Floats = npt.NDArray[np.float64]
ROOT_DEGREES = (3, 5, 7, 15, 27)  # of an inverse root, whose range decides


@dataclass(frozen=True, eq=False)
class Normalised:
    """The layers but the last, with the values and gains of what the last one takes."""

    layers: tuple[Layer, ...]
    fits: dict[str, Fit]
    source: str | None  # the layer that the last one takes; None: the input
    values: Floats
    gain: Floats


def normalise(
    layers: Sequence[NetworkLayer], values: Floats, *, degree: int, root_error: float
) -> Normalised:
    """Return all `layers` but the last, for rows of standardised inputs `values`.

    `root_error` bounds the relative rms error of an inverse square root, which has its own degree.
    """
    found = _Values(layers, values, degree, root_error)
    gains = _Gains(layers, found)
    made: list[Layer] = []
    fits: dict[str, Fit] = {}
    names: dict[str, str] = {}  # of a network layer: the graph layer that gives its values
    for index, (layer, taken) in enumerate(zip(layers[:-1], found.takes, strict=False)):
        sources = [None if name is None else names[name] for name in taken]
        if isinstance(layer, Join):
            new: tuple[Layer, ...] = (_join(layer, index, sources, found.values[layer.name]),)
        else:
            new = _dense(layer, index, taken[0], sources[0], found, gains)
            if isinstance(new[-1], Polynomial) and layer.activation is not None:
                fits[new[-1].name] = found.fits[layer.name]
        for part in new:
            before = made[-1].name if made else None
            made.append(replace(part, of=None) if part.of == before else part)
        names[layer.name] = made[-1].name
    last = found.takes[-1][0]
    source = None if last is None else names[last]
    gain = gains.of(last)
    return Normalised(tuple(made), fits, source, found.values[last] / gain, gain)


class _Values:
    """What every layer gives on the calibration data, in its own units, with fitted activations."""

    def __init__(
        self, layers: Sequence[NetworkLayer], values: Floats, degree: int, root_error: float
    ) -> None:
        self.takes = named(layers)
        self.values: dict[str | None, Floats] = {None: values}
        self.fits: dict[str, Fit] = {}
        for layer, taken in zip(layers[:-1], self.takes, strict=False):
            operands = [self.values[name] for name in taken]
            if isinstance(layer, Join):
                self.values[layer.name] = layer(*operands)
                continue
            h = operands[0] @ layer.weight.T + layer.bias
            if layer.activation is not None:
                fitted = _fitted(layer.activation, h, degree, root_error)
                self.fits[layer.name] = fitted
                t = (h - fitted.centre) / fitted.radius
                h = fitted.gain * bases.evaluate(fitted.coefficients, t, fitted.basis)
            self.values[layer.name] = h


def _fitted(activation: Activation, h: Floats, degree: int, root_error: float) -> Fit:
    if activation.function != "rsqrt":
        return fit(activation, h, degree=degree)
    for candidate in ROOT_DEGREES:
        fitted = fit(activation, h, degree=candidate)
        t = (h - fitted.centre) / fitted.radius
        given = fitted.gain * bases.evaluate(fitted.coefficients, t, fitted.basis)
        if float(np.sqrt(((given / activation(h) - 1) ** 2).mean())) <= root_error:
            break
    return fitted


class _Gains:
    """By what each unit of each layer is divided."""

    def __init__(self, layers: Sequence[NetworkLayer], found: _Values) -> None:
        self._class: dict[str, str] = {}
        self._gains: dict[str | None, Floats] = {None: np.ones(found.values[None].shape[1])}
        joins = [
            (layer, taken)
            for layer, taken in zip(layers[:-1], found.takes, strict=False)
            if isinstance(layer, Join)
        ]
        for join, taken in joins:
            if join.kind == "add":
                for name in taken:
                    self._unite(join.name, str(name))
        members: dict[str, list[str]] = {}
        for layer in layers[:-1]:
            members.setdefault(self._root(layer.name), []).append(layer.name)
        for group in members.values():
            alone = found.fits.get(group[0]) if len(group) == 1 else None
            largest = np.max([np.abs(found.values[name]).max(axis=0) for name in group], axis=0)
            gain = _floored(largest) if alone is None else alone.gain
            self._gains.update(dict.fromkeys(group, gain))
        for join, (first, second) in joins:
            if join.kind == "product":
                self._gains[first] = self._gains[join.name] / self._gains[second]

    def of(self, name: str | None) -> Floats:
        """Return the gains of a layer's units."""
        return self._gains[name]

    def _root(self, name: str) -> str:
        while name in self._class:
            name = self._class[name]
        return name

    def _unite(self, one: str, other: str) -> None:
        a, b = self._root(one), self._root(other)
        if a != b:
            self._class[a] = b


def _floored(largest: Floats) -> Floats:
    """Return the gains; a unit that never moves keeps its own."""
    return np.where(largest < 1e-6 * largest.max() + 1e-12, 1.0, largest)


def _join(layer: Join, index: int, sources: list[str | None], values: Floats) -> Layer:
    name = f"{layer.kind}{index}"
    return graph.Join(name, layer.kind, values.shape[1], str(sources[1]), sources[0])


def _dense(
    layer: Dense, index: int, taken: str | None, source: str | None, found: _Values, gains: _Gains
) -> tuple[Layer, ...]:
    weight, gain = layer.weight * gains.of(taken), gains.of(layer.name)
    name = f"linear{index}"
    if layer.activation is None:
        return (Linear(name, weight / gain[:, None], layer.bias / gain, source),)
    direct = None if source is None else _direct(layer, weight, found.fits[layer.name])
    fitted = direct or found.fits[layer.name]
    # the gain may be another than the fit's: that of a sum or of a product
    coefficients = fitted.coefficients * (fitted.gain / gain)[:, None]
    found.fits[layer.name] = replace(fitted, gain=gain, coefficients=coefficients)
    polynomial = Polynomial(
        f"activation{index}", coefficients, layer.activation.function, fitted.basis
    )
    if direct is not None:
        return (replace(polynomial, of=source),)
    scaled = weight / fitted.radius[:, None]
    bias = (layer.bias - fitted.centre) / fitted.radius
    return (Linear(name, scaled, bias, source), replace(polynomial, of=name))


def _direct(layer: Dense, weight: Floats, fitted: Fit) -> Fit | None:
    """Return the activation as one of what the layer takes, if it only scales: a level is saved."""
    scale = np.diag(weight).copy() if weight.shape[0] == weight.shape[1] else None
    if scale is None or not scale.all() or np.count_nonzero(weight) != len(scale):
        return None
    activation = layer.activation
    if activation is not None and activation.function == "polynomial":
        if activation.basis != "monomial":
            return None
        exact = substitute(np.array([activation.coefficients]), layer.bias, scale)
        exact /= fitted.gain[:, None]
        return replace(fitted, centre=layer.bias, radius=scale, coefficients=exact)
    return moved(fitted, layer.bias, scale)
