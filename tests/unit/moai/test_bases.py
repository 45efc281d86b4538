import numpy as np
import pytest
from numpy.polynomial import chebyshev

from support import moai
from tensorguard.errors import MalformedInput
from tensorguard.moai import bases
from tensorguard.moai.backends.base import open_backend
from tensorguard.moai.compile import compile_network
from tensorguard.moai.compile.network import Activation, Dense
from tensorguard.moai.graph import Polynomial


def value_of_products(coefficients, z, basis):
    total = np.zeros_like(z)
    for k in range(coefficients.shape[1]):
        product = np.ones_like(z)
        for bit in range(k.bit_length()):
            if k >> bit & 1:
                product *= bases.factor(z, 1 << bit, basis)
        total += coefficients[:, k] * product
    return total


@pytest.mark.parametrize("degree", range(1, 32))
def test_products_are_the_same_polynomial_and_stay_small(degree):
    coefficients = np.random.default_rng(degree).normal(size=(3, degree + 1))
    z = np.random.default_rng(0).uniform(-1, 1, (20, 3))
    products = bases.product_coefficients(coefficients, "chebyshev")
    truth = bases.evaluate(coefficients, z, "chebyshev")
    np.testing.assert_allclose(value_of_products(products, z, "chebyshev"), truth, atol=1e-12)
    assert products.shape == coefficients.shape
    assert np.abs(products).sum() < 32 * np.abs(coefficients).sum()


@pytest.mark.parametrize("basis", ["monomial", "chebyshev"])
def test_the_derivative_is_the_slope(basis):
    polynomial = Polynomial("p", np.random.default_rng(1).normal(size=(2, 8)), "tanh", basis)
    x, step = np.random.default_rng(2).uniform(-0.9, 0.9, (5, 2)), 1e-6
    slope = (polynomial.apply(x + step) - polynomial.apply(x - step)) / (2 * step)
    np.testing.assert_allclose(polynomial.derivative(x), slope, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("basis", "most"), bases.MAX_DEGREES.items())
def test_a_degree_over_the_most_of_its_basis_is_refused(basis, most):
    Polynomial("p", np.ones((1, most + 1)), "polynomial", basis)
    with pytest.raises(MalformedInput, match=basis):
        Polynomial("p", np.ones((1, most + 2)), "polynomial", basis)


def steep(degree):
    """A sigmoid that needs many terms, on one value in [-1, 1]."""
    coefficients = chebyshev.chebinterpolate(lambda x: np.tanh(6 * x), degree)
    return (
        Dense(
            "a", np.eye(1), np.zeros(1), Activation("polynomial", tuple(coefficients), "chebyshev")
        ),
        Dense("b", np.eye(1), np.zeros(1), None),
    )


def test_degree_27_is_evaluated_without_losing_digits_by_each_installed_backend():
    network = moai.network(*steep(27), features=1)
    data = np.linspace(-1, 1, 256)[:, None] / 1.1
    compiled = compile_network(network, data)
    ready = moai.ready(compiled, data)
    assert compiled.parameters.degree == 16384
    predicted = compiled.precision.ckks_absolute_rms
    backends = {name: open_backend(name).load(ready.pack) for name in moai.installed_backends()}
    rows = np.linspace(-1, 1, 9)[:, None]
    truth = network.raw(rows)[:, 0]
    for name, model in backends.items():
        keys = model.load_keys(ready.key_frame)
        results = [model.evaluate(keys, ready.client.encrypt(x)) for x in rows]
        found = np.array([ready.client.decrypt(result)[0] for result in results])
        assert np.abs(found - truth).max() < 1e-5, name
        # one slot under one key scatters; all slots hold the value
        slots = np.concatenate([ready.client.decrypt_slots(result) for result in results])
        error = np.sqrt(np.mean((slots - compiled.graph.slots(rows)) ** 2))
        error *= compiled.graph.output.scale[0]
        assert predicted / 2 < error < 2 * predicted < 1e-5, name


def test_a_chebyshev_polynomial_beyond_its_interval_is_refused():
    with pytest.raises(MalformedInput, match="-1, 1"):
        compile_network(moai.network(*steep(9), features=1), np.linspace(-1, 1, 64)[:, None])


def test_a_fit_of_high_degree_is_in_the_stable_basis_and_better():
    rng = np.random.default_rng(4)
    layers = (
        Dense("a", rng.normal(size=(6, 4)), rng.normal(size=6), Activation("relu")),
        Dense("b", rng.normal(size=(2, 6)), rng.normal(size=2), None),
    )
    data = rng.uniform(-1, 1, (400, 4))
    network = moai.network(*layers, features=4)
    low, high = (compile_network(network, data, degree=d, error_budget=1) for d in (7, 15))
    assert [x.graph.layers[1].basis for x in (low, high)] == ["monomial", "chebyshev"]
    assert high.precision.approximation_rms < low.precision.approximation_rms


def test_factors_of_low_rank_stay_apart_and_are_normalised():
    rng = np.random.default_rng(5)
    down, up = rng.normal(size=(4, 64)) * 3, rng.normal(size=(64, 4)) * 5
    layers = (Dense("down", down, rng.normal(size=4), None), Dense("up", up, np.zeros(64), None))
    data = rng.uniform(-1, 1, (100, 64))
    network = moai.network(*layers, features=64)
    compiled = compile_network(network, data)
    assert [layer.weight.shape for layer in compiled.graph.layers] == [(4, 64), (64, 4)]
    assert np.abs(compiled.graph.layers[0].apply(data)).max() == pytest.approx(1)
    np.testing.assert_allclose(compiled.graph.apply(data), network.raw(data))
