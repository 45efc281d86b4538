import numpy as np
import pytest
import tenseal

from support import moai
from tensorguard.errors import MalformedInput, TooLarge
from tensorguard.moai.backends.base import SUPPORTED_BACKENDS, BackendUnusable, open_backend
from tensorguard.moai.compile import compile_network
from tensorguard.moai.compile.network import Activation, Dense
from tensorguard.wire.frames import ParametersMismatch, SecretKeyInUpload


def measured(model, rows, truth):
    results = np.array([model.infer(x, out_of_range="clip") for x in rows])
    return results, float(np.sqrt(((results - truth) ** 2).mean()))


def test_the_encrypted_policy_head_is_the_plaintext_one():
    model = moai.reacher()
    rows = model.inputs[:12]
    graph = model.model.spec.graph
    results, rms = measured(model, rows, graph.apply(rows))
    network_truth = model.compiled.graph.apply(rows)
    assert np.abs(results - network_truth).max() < 1e-3
    predicted = model.compiled.precision.ckks_absolute_rms
    # one key and few rows scatter: over many of both the bench holds the factor to 2 (TG-I86)
    assert predicted / 4 < rms < predicted * 3
    assert model.compiled.precision.approximation_rms < 1e-9  # a polynomial is exported exactly
    assert model.compiled.parameters.degree == 8192


def test_the_encrypted_digits_classifier_agrees_with_its_prediction():
    model = moai.digits()
    rows = model.inputs[::40]
    results, rms = measured(model, rows, model.model.spec.graph.apply(rows))
    estimator, *_ = moai.digits_estimator()
    predicted = model.compiled.precision.ckks_absolute_rms
    # one key and few rows scatter: over many of both the bench holds the factor to 2 (TG-I86)
    assert predicted / 4 < rms < predicted * 3
    labels = np.array(model.client.view.output.labels)[results.argmax(axis=1)]
    assert (labels == estimator.predict(rows).astype(str)).mean() > 0.9
    np.testing.assert_allclose(results.sum(axis=1), 1.0)


def test_tenseal_silently_drops_a_bias_between_two_products_and_we_do_not():
    """TenSEAL issue 462. When this fails, TenSEAL has been repaired."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(32, 16)) / 4, rng.normal(size=(8, 32)) / 6
    bias, x = rng.normal(size=32), rng.uniform(-1, 1, 16)
    truth = second @ (first @ x + bias) ** 2
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, 16384, coeff_mod_bit_sizes=[60, 40, 40, 40, 60], n_threads=1
    )
    context.global_scale = 2.0**40
    context.generate_galois_keys()
    hidden = tenseal.ckks_vector(context, x.tolist()).mm(first.T.tolist()) + bias.tolist()
    theirs = (hidden * hidden).mm(second.T.tolist()).decrypt()
    assert np.abs(np.array(theirs) - truth).max() > 0.1

    layers = (
        Dense("a", first, bias, Activation("polynomial", (0.0, 0.0, 1.0))),
        Dense("b", second, np.zeros(8), None),
    )
    data = rng.uniform(-1, 1, (256, 16))
    ours = moai.ready(compile_network(moai.network(*layers, features=16), data), data)
    assert np.abs(ours.infer(np.clip(x, data.min(0), data.max(0))) - truth).max() < 1e-3


@pytest.mark.parametrize("degree", [1, 2, 4, 5, 7, 9])
def test_every_degree_is_evaluated(degree):
    rng = np.random.default_rng(degree)
    coefficients = tuple(rng.normal(size=degree + 1).tolist())
    layers = (
        Dense(
            "a",
            rng.normal(size=(5, 3)) / 2,
            rng.normal(size=5),
            Activation("polynomial", coefficients),
        ),
        Dense("b", rng.normal(size=(2, 5)), rng.normal(size=2), None),
    )
    network = moai.network(*layers, features=3)
    data = rng.uniform(-1, 1, (128, 3))
    model = moai.ready(compile_network(network, data, error_budget=0.2), data)
    x = data[0]
    spread = np.ptp(network.raw(data), axis=0)
    tolerance = 10 * model.compiled.precision.ckks_rms + 1e-6
    assert np.abs((model.infer(x) - network.raw(x[None])[0]) / spread).max() < tolerance


def test_three_layers_keep_their_biases():
    rng = np.random.default_rng(5)
    layers = (
        Dense("a", rng.normal(size=(12, 6)) / 2, rng.normal(size=12), Activation("tanh")),
        Dense("b", rng.normal(size=(7, 12)) / 3, rng.normal(size=7), Activation("logistic")),
        Dense("c", rng.normal(size=(3, 7)), rng.normal(size=3), None),
    )
    data = rng.uniform(-1, 1, (256, 6))
    compiled = compile_network(moai.network(*layers, features=6), data)
    model = moai.ready(compiled, data)
    assert np.abs(model.infer(data[3]) - compiled.graph.apply(data[3:4])[0]).max() < 1e-3


def test_keys_and_ciphertexts_of_another_model_are_refused():
    tiny, square = moai.tiny(), moai.square()
    with pytest.raises(ParametersMismatch):
        square.model.load_keys(tiny.key_frame)
    with pytest.raises(TooLarge):
        tiny.model.load_keys(square.key_frame)
    with pytest.raises(ParametersMismatch):
        tiny.model.evaluate(tiny.keys, square.client.encrypt(square.inputs[0]))
    with pytest.raises(ParametersMismatch):
        tiny.model.evaluate(square.keys, tiny.client.encrypt(tiny.inputs[0]))
    with pytest.raises(TooLarge):
        tiny.model.evaluate(tiny.keys, tiny.key_frame)


def test_a_result_is_not_an_input():
    tiny = moai.tiny()
    result = tiny.model.evaluate(tiny.keys, tiny.client.encrypt(tiny.inputs[0]))
    with pytest.raises(MalformedInput):
        tiny.model.evaluate(tiny.keys, result)


def test_secret_keys_in_uploads_are_named():
    tiny = moai.tiny()
    with pytest.raises(SecretKeyInUpload):
        tiny.model.load_keys(tiny.client.to_frame())
    with pytest.raises(SecretKeyInUpload):
        tiny.model.evaluate(tiny.keys, tiny.client.to_frame())


def test_only_backends_in_the_table_open():
    assert set(SUPPORTED_BACKENDS) == {"tenseal", "native"}
    for name in ("Native", "", "TenSEAL", "tenseal "):
        with pytest.raises(BackendUnusable):
            open_backend(name)
