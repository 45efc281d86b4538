"""Sums and products with earlier layers: residual connections and layer normalisation, encrypted."""

from functools import cache

import numpy as np
import pytest

from support import moai
from support.packing import repacked
from tensorguard.errors import MalformedInput, VerificationError
from tensorguard.moai import pack
from tensorguard.moai.backends.base import open_backend
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.compile import build_pack, compile_network, predict_pack, report_pack
from tensorguard.moai.compile.network import Activation, Dense, Join
from tensorguard.moai.plan import (
    JoinShape,
    LinearShape,
    PolynomialShape,
    TooDeep,
    choose_parameters,
    plan_network,
)

WIDTH = 8
CUBIC = Activation("polynomial", (0.1, 0.6, 0.2, -0.1))


def dense(rng, name, outputs, inputs, activation=None, of=None):
    weight = rng.normal(size=(outputs, inputs)) / np.sqrt(inputs)
    return Dense(name, weight, rng.normal(size=outputs) / 4, activation, of)


@cache
def residual():
    """x -> h; h + f(h); then an activation straight on the sum, and a head with a second shortcut."""
    rng = np.random.default_rng(3)
    layers = (
        dense(rng, "h", WIDTH, 5),
        dense(rng, "f", WIDTH, WIDTH, Activation("silu")),
        dense(rng, "g", WIDTH, WIDTH),
        Join("s", "add", "h"),
        Dense("r", np.eye(WIDTH), np.zeros(WIDTH), CUBIC),
        Join("t", "add", "s"),
        dense(rng, "y", 3, WIDTH),
    )
    return network(rng, layers, 5)


@cache
def normalised():
    """A layer normalisation between two layers, with its inverse root fitted."""
    rng = np.random.default_rng(4)
    centre = np.eye(WIDTH) - 1 / WIDTH
    mean, epsilon = np.full((WIDTH, WIDTH), 1 / WIDTH), np.full(WIDTH, 1e-5)
    layers = (
        dense(rng, "h", WIDTH, 5),
        Dense("c", centre, np.zeros(WIDTH), None),
        Dense("q", np.eye(WIDTH), np.zeros(WIDTH), Activation("polynomial", (0.0, 0.0, 1.0))),
        Dense("v", mean, epsilon, Activation("rsqrt")),
        Join("n", "product", "c"),
        dense(rng, "y", 3, WIDTH),
    )
    return network(rng, layers, 5)


@cache
def gated():
    """Two activations side by side, multiplied: both branches are layers that take an earlier one."""
    rng = np.random.default_rng(6)
    layers = (
        dense(rng, "h", WIDTH, 5),
        dense(rng, "a", WIDTH, WIDTH, CUBIC),
        dense(rng, "b", WIDTH, WIDTH, Activation("polynomial", (0.5, 0.5)), "h"),
        Join("p", "product", "a"),
        dense(rng, "y", 6, WIDTH),
    )
    return network(rng, layers, 5)


def network(rng, layers, features):
    made = moai.network(*layers, features=features)
    return made, rng.uniform(-1, 1, (600, features))


MODELS = {"residual": residual, "layer-norm": normalised, "gated": gated}


@cache
def compiled(name, layout="blocks"):
    return compile_network(*MODELS[name](), layout=layout, error_budget=0.1)


def signed(name, layout="blocks"):
    return build_pack(compiled(name, layout), name=name, version="1.0", signer=moai.signer())


def verified(data):
    return pack.verify(pack.read(data, limit=moai.LIMIT), moai.trust())


@pytest.mark.invariant("TG-I70")
@pytest.mark.parametrize("backend", moai.installed_backends())
@pytest.mark.parametrize("name", MODELS)
def test_what_joins_layers_answers_encrypted_as_in_the_clear(name, backend):
    net, data = MODELS[name]()
    opened = verified(signed(name))
    model = open_backend(backend).load(opened)
    client = ClientKeys.generate(model.spec.view())
    keys = model.load_keys(client.evaluation_keys())
    rows = data[:12]
    found = np.stack([client.decrypt(model.evaluate(keys, client.encrypt(x))) for x in rows])
    graph, precision = model.spec.graph, opened.manifest.precision
    rms = float(np.sqrt(((found - graph.apply(rows)) ** 2).mean()))
    predicted = precision.ckks_absolute_rms
    assert predicted / 4 < rms < predicted * 2  # few samples scatter below
    spread = np.ptp(net.raw(data), axis=0)
    assert np.abs((found - net.raw(rows)) / spread).max() < precision.approximation_max + 1e-3


@pytest.mark.parametrize("backend", [x for x in moai.installed_backends() if x == "native"])
@pytest.mark.parametrize("name", ["residual", "layer-norm"])
def test_batches_join_layers_column_by_column(name, backend):
    _, data = MODELS[name]()
    opened = verified(signed(name, "columns"))
    model = open_backend(backend).load(opened)
    client = ClientKeys.generate(model.spec.view())
    keys = model.load_keys(client.evaluation_keys())
    found = client.decrypt_batch(model.evaluate(keys, client.encrypt_batch(data)), samples=600)
    rms = float(np.sqrt(((found - model.spec.graph.apply(data)) ** 2).mean()))
    predicted = opened.manifest.precision.ckks_absolute_rms
    assert predicted / 2 < rms < predicted * 2


def test_values_stay_about_one_and_levels_end_at_one():
    for name in MODELS:
        model = compiled(name)
        values = model.graph.trace(model.graph.standardise(MODELS[name]()[1]))
        for layer, value in zip(model.graph.layers, values, strict=True):
            assert np.abs(value).max() < 8, layer.name  # a product's first factor may exceed one
        assert model.plan.layers[-1].level == 2
        assert model.plan.layers[0].level == model.plan.depth + 1 == model.parameters.levels


def test_an_activation_of_a_sum_takes_no_layer_of_its_own():
    kinds = [(type(x).__name__, x.names) for x in compiled("residual").graph.layers]
    assert kinds[5] == ("Polynomial", (None,))
    assert kinds[4] == ("Join", (None, "linear0"))


def test_simulation_and_reports_know_joins():
    opened = verified(signed("layer-norm"))
    data = normalised()[1]
    report = predict_pack(opened, data)
    assert [x.kind for x in report.layers].count("product") == 1
    assert report.ckks_rms == pytest.approx(opened.manifest.precision.ckks_rms, rel=0.01)
    assert "product" in report_pack(opened, report, data)


def test_a_deep_network_of_joins_is_refused_with_the_layer_and_the_way_out():
    shapes = [LinearShape("h0", 8, 8)]
    for k in range(5):
        shapes += [
            LinearShape(f"c{k}", 8, 8),
            PolynomialShape(f"q{k}", 8, 2),
            LinearShape(f"v{k}", 8, 8),
            PolynomialShape(f"i{k}", 8, 3),
            JoinShape(f"n{k}", "product", 8, len(shapes)),
        ]
    shapes.append(LinearShape("y", 8, 8))
    with pytest.raises(TooDeep, match=r"they end at layer n3.*batch normalisation"):
        choose_parameters(shapes)


def test_shortcuts_take_no_levels_and_run_as_late_as_they_can():
    shapes = [
        LinearShape("h", 8, 8),
        LinearShape("a", 8, 8),
        PolynomialShape("p", 8, 7),
        LinearShape("shortcut", 8, 8, 0),
        JoinShape("s", "add", 8, 2),
        LinearShape("y", 8, 8),
    ]
    plan = plan_network(shapes, slots=64)
    assert plan.depth == 6
    assert [layer.level for layer in plan.layers] == [7, 6, 5, 3, 2, 2]


PRODUCT = 4  # of the layers linear0, activation1, linear2, activation2, product3, linear4
BAD = {
    "forward": lambda x: x[PRODUCT].update(other=x[PRODUCT + 1]["name"]),
    "itself": lambda x: x[PRODUCT].update(other=x[PRODUCT]["name"]),
    "unknown": lambda x: x[PRODUCT].update(other="nothing"),
    "twice": lambda x: x[PRODUCT].update(other=x[PRODUCT - 1]["name"]),
    "before it": lambda x: x[PRODUCT].update(of=x[PRODUCT - 1]["name"]),
    "width": lambda x: x[PRODUCT].update(width=7),
    "no other": lambda x: x[PRODUCT].pop("other"),
    "kind": lambda x: x[PRODUCT].update(kind="quotient"),
    "extra": lambda x: x[PRODUCT].update(scale=2),
    "not own": lambda x: x[PRODUCT].update(of=x[1]["name"], other=x[PRODUCT - 1]["name"]),
    "sum": lambda x: x[PRODUCT].update(kind="add"),
    "unused": lambda x: x[2].update(of=x[0]["name"]),
    "null": lambda x: x[PRODUCT].update(other=None),
    "first": lambda x: x[0].update(of="linear5"),
}


@pytest.mark.invariant("TG-I71")
@pytest.mark.parametrize("why", BAD)
def test_a_manifest_that_joins_layers_wrongly_is_refused(why):
    data = signed("layer-norm")

    def change(document):
        BAD[why](document["layers"])
        return document

    names = [layer.name for layer in verified(repacked(data)).spec.graph.layers]
    assert names[PRODUCT] == "product3"
    with pytest.raises((VerificationError, MalformedInput)):
        verified(repacked(data, manifest=change))
