import json

import numpy as np
import pytest
from safetensors.numpy import save
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PolynomialFeatures, StandardScaler

from support import moai
from tensorguard.errors import MalformedInput
from tensorguard.moai.compile import (
    OverErrorBudget,
    compile_network,
    from_safetensors,
    from_sklearn,
    predict_pack,
    read_calibration,
    read_model,
)
from tensorguard.moai.compile.files import CalibrationUnusable, PickleRefused
from tensorguard.moai.compile.fit import fit
from tensorguard.moai.compile.from_sklearn import network_of
from tensorguard.moai.compile.network import Activation, Dense, ModelNotSupported
from tensorguard.moai.plan import TooDeep

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) * [1, 2, 3, 4, 5, 6] + 3
    y = np.column_stack([np.sin(x[:, 0]) + x[:, 1] / 4, np.tanh(x[:, 2])]) * 20 + 7
    return x, y


def regressor(activation="tanh", **options):
    return MLPRegressor(
        hidden_layer_sizes=(12,), activation=activation, random_state=0, max_iter=60, **options
    )


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_regressors_in_pipelines_keep_their_predictions(data, activation):
    x, y = data
    estimator = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), regressor(activation)), transformer=StandardScaler()
    ).fit(x, y)
    compiled = from_sklearn(estimator, x)
    expected = estimator.predict(x)
    error = (compiled.graph.apply(x) - expected) / np.ptp(expected, axis=0)
    report = compiled.precision
    assert np.sqrt((error**2).mean()) == pytest.approx(report.approximation_rms)
    assert report.total_rms <= 0.05
    assert len(compiled.graph.layers) == (1 if activation == "identity" else 3)
    np.testing.assert_allclose(compiled.graph.input.mean, x.mean(axis=0))


@pytest.mark.parametrize("classes", [2, 3])
def test_classifiers_keep_their_labels(data, classes):
    x, _ = data
    labels = np.digitize(x[:, 0], np.quantile(x[:, 0], np.arange(1, classes) / classes))
    names = np.array(["slow", "mid", "fast"])[labels]
    estimator = make_pipeline(StandardScaler(), MLPClassifier((12,), random_state=0)).fit(x, names)
    compiled = from_sklearn(estimator, x)
    output = compiled.graph.output
    assert output.labels == tuple(estimator.classes_)
    probabilities = compiled.graph.apply(x)
    assert probabilities.shape == (400, classes)
    chosen = np.array(output.labels)[probabilities.argmax(axis=1)]
    assert (chosen == estimator.predict(x)).mean() > 0.92
    error = probabilities - estimator.predict_proba(x)
    assert np.sqrt((error**2).mean()) == pytest.approx(compiled.precision.approximation_rms)


def test_what_is_not_a_supported_network_is_refused(data):
    x, y = data
    good = regressor().fit(x, y)
    for estimator in (
        regressor(),
        RandomForestRegressor(n_estimators=2, max_depth=2).fit(x, y),
        make_pipeline(MinMaxScaler(clip=True), regressor()).fit(x, y),
        make_pipeline(PolynomialFeatures(), regressor()).fit(x, y),
        make_pipeline(StandardScaler(), make_pipeline(StandardScaler(), regressor())).fit(x, y),
        MLPClassifier((4,), max_iter=5).fit(x, y > 7),
        type("MLPRegressor", (), {"coefs_": good.coefs_})(),
        "model.pkl",
        None,
    ):
        with pytest.raises(ModelNotSupported):
            network_of(estimator)


def test_the_least_degree_within_the_budget_is_taken(data):
    x, y = data
    estimator = make_pipeline(StandardScaler(), regressor()).fit(x, y)
    loose = from_sklearn(estimator, x, error_budget=0.05)
    tight = from_sklearn(estimator, x, error_budget=loose.precision.total_rms / 2)
    degree = lambda compiled: max(layer.degree for layer in compiled.precision.layers)  # noqa: E731
    assert degree(loose) < degree(tight)
    assert tight.precision.total_rms < loose.precision.total_rms / 2
    assert degree(from_sklearn(estimator, x, degree=7)) == 7


def test_a_pack_over_its_error_budget_is_refused_with_the_layer_and_a_remedy(data):
    x, y = data
    estimator = make_pipeline(StandardScaler(), regressor("relu")).fit(x, y)
    with pytest.raises(OverErrorBudget, match="layer activation0 loses most") as refused:
        from_sklearn(estimator, x, error_budget=1e-7)
    assert "--refit-last" in refused.value.remedy


def test_refitting_the_last_layer_lowers_the_error(data):
    x, y = data
    estimator = make_pipeline(StandardScaler(), regressor("relu")).fit(x, y)
    plain = from_sklearn(estimator, x, degree=3)
    again = from_sklearn(estimator, x, degree=3, refit_last=True)
    assert again.precision.approximation_rms < plain.precision.approximation_rms
    assert again.provenance.options["refit-last"] == "true"


def test_fits_stay_sane_in_the_margin():
    rng = np.random.default_rng(0)
    h = rng.normal(scale=[0.1, 1.0, 5.0], size=(2000, 3))
    for function in ("relu", "tanh", "logistic"):
        for degree in (3, 5, 7):
            fitted = fit(Activation(function), h, degree=degree)
            edge = np.array([[-1.0] * 3, [1.0] * 3])
            values = (np.stack([edge**k for k in range(degree + 1)], -1) * fitted.coefficients).sum(
                -1
            ) * fitted.gain
            truth = Activation(function)(fitted.centre + fitted.radius * edge)
            assert np.abs(values - truth).max() < 1.2 * max(1.0, np.abs(truth).max())


def test_a_unit_that_never_moves_is_no_trouble():
    first = Dense("a", np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([0.0, 2.0]), Activation("tanh"))
    last = Dense("b", np.array([[1.0, 1.0]]), np.zeros(1), None)
    x = np.random.default_rng(0).uniform(-1, 1, (100, 2))
    compiled = compile_network(moai.network(first, last, features=2), x)
    assert np.abs(compiled.graph.apply(x) - np.tanh(x[:, :1]) - np.tanh(2)).max() < 0.05


@pytest.mark.parametrize(
    "rows", [np.zeros((0, 2)), np.zeros((15, 2)), np.zeros((20, 3)), np.zeros(20), np.full((20, 2), np.nan)],
    ids=lambda rows: str(rows.shape),
)  # fmt: skip
def test_calibration_data_that_say_nothing_are_refused(rows):
    network = moai.network(Dense("a", np.eye(2), np.zeros(2), None), features=2)
    with pytest.raises(MalformedInput):
        compile_network(network, rows)


def test_too_deep_a_network_is_refused_before_it_is_built():
    rng = np.random.default_rng(0)
    layers = [
        Dense(f"d{i}", np.eye(4)[::-1], np.zeros(4), Activation("polynomial", (0.0, 1.0, 0.0, 0.1)))
        for i in range(12)
    ]
    layers.append(Dense("out", np.eye(4), np.zeros(4), None))
    with pytest.raises(TooDeep):
        compile_network(moai.network(*layers, features=4), rng.uniform(-0.1, 0.1, (32, 4)))


DESCRIPTION = {
    "input": {"features": 3, "mean": [1, 2, 3], "std": "std"},
    "layers": [
        {"kind": "linear", "weight": "0.weight", "bias": "0.bias"},
        {"kind": "polynomial", "coefficients": [0, 1, 0, -0.1]},
        {"kind": "linear", "weight": "1.weight"},
    ],
    "output": {"kind": "regression", "scale": [2, 3], "offset": [5, 6]},
}


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(1)
    return save(
        {
            "0.weight": rng.normal(size=(8, 3)).astype(np.float32),
            "0.bias": rng.normal(size=8).astype(np.float32),
            "1.weight": rng.normal(size=(2, 8)),
            "std": np.array([1.0, 2.0, 3.0]),
        }
    )


def test_a_polynomial_network_is_exported_exactly(weights):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 3)) * 2 + 2
    compiled = from_safetensors(weights, json.dumps(DESCRIPTION).encode(), x, error_budget=1e-3)
    assert compiled.precision.approximation_max < 1e-12
    assert compiled.graph.layers[1].degree == 3
    assert compiled.provenance.source == "safetensors"
    from tensorguard.moai import tensors

    values = tensors.load_any(weights)
    h = (x - [1, 2, 3]) / values["std"] @ values["0.weight"].T + values["0.bias"]
    truth = (h - 0.1 * h**3) @ values["1.weight"].T * [2, 3] + [5, 6]
    np.testing.assert_allclose(compiled.graph.apply(x), truth, rtol=1e-9)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": []},
        {"surprise": 1},
        {"layers": [{"kind": "conv2d", "weight": "0.weight"}]},
        {"layers": [{"kind": "linear", "weight": "missing"}]},
        {"layers": [{"kind": "linear", "weight": "0.bias"}]},
        {"layers": [{"kind": "linear", "weight": "1.weight"}]},
        {"layers": [{"kind": "activation", "function": "tanh"}, *DESCRIPTION["layers"]]},
        {"layers": [*DESCRIPTION["layers"], {"kind": "activation", "function": "tanh"}]},
        {"layers": [{"kind": "activation", "function": "swish"}]},
        {"layers": [DESCRIPTION["layers"][0], {"kind": "polynomial", "coefficients": [1]}]},
        {"layers": [DESCRIPTION["layers"][0], {"kind": "polynomial", "coefficients": [1] * 20}]},
        {"input": {"features": 4}},
        {"input": {"features": 3, "std": [0, 1, 1]}},
        {"input": {"features": 3, "mean": [1]}},
        {"output": {"kind": "classification"}},
        {"output": {"kind": "regression", "labels": ["a", "b"]}},
        {"output": {"kind": "regression", "scale": [-1, 1]}},
    ],
    ids=lambda change: json.dumps(change)[:60],
)
def test_a_description_that_does_not_fit_is_refused(weights, change):
    x = np.random.default_rng(2).normal(size=(200, 3))
    with pytest.raises(MalformedInput):
        from_safetensors(weights, {**DESCRIPTION, **change}, x)


def test_model_files_are_read_and_pickles_are_not(data, weights, tmp_path):
    from skops import io as skops

    x, y = data
    estimator = make_pipeline(StandardScaler(), regressor(solver="adam")).fit(x, y)
    path = tmp_path / "model.skops"
    skops.dump(estimator, path)
    network = read_model(path)
    np.testing.assert_allclose(network.raw(x), estimator.predict(x))
    assert len(network.source_sha256) == 64

    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "layers.json").write_text(json.dumps(DESCRIPTION))
    read_model(tmp_path / "model.safetensors", layers=tmp_path / "layers.json")
    with pytest.raises(ModelNotSupported, match="--layers"):
        read_model(tmp_path / "model.safetensors")
    with pytest.raises(ModelNotSupported):
        read_model(path, layers=tmp_path / "layers.json")
    for name in ("model.pkl", "model.joblib", "model.PICKLE"):
        with pytest.raises(PickleRefused) as refused:
            read_model(tmp_path / name)
        assert "skops" in refused.value.remedy
    with pytest.raises(ModelNotSupported):
        read_model(tmp_path / "model.h5")
    path.write_bytes(b"not a zip")
    with pytest.raises(MalformedInput):
        read_model(path)
    skops.dump({"a": json.JSONEncoder()}, path)
    with pytest.raises(ModelNotSupported, match="trust"):
        read_model(path)


def test_calibration_files_hold_numbers_and_nothing_else(tmp_path):
    rows = np.arange(40.0).reshape(20, 2)
    np.save(tmp_path / "good.npy", rows.astype(np.float32))
    np.savez_compressed(tmp_path / "good.npz", rows=rows)
    for name in ("good.npy", "good.npz"):
        np.testing.assert_array_equal(read_calibration(tmp_path / name), rows)
    np.save(tmp_path / "object.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "flat.npy", np.arange(4.0))
    np.savez(tmp_path / "two.npz", a=rows, b=rows)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros((1 << 26,), dtype=np.float64))
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    for name in ("object", "text", "flat", "empty"):
        with pytest.raises(CalibrationUnusable):
            read_calibration(tmp_path / f"{name}.npy")
    for name in ("two", "bomb", "junk"):
        with pytest.raises(CalibrationUnusable):
            read_calibration(tmp_path / f"{name}.npz")


def test_a_finished_pack_is_simulated_on_other_data():
    model = moai.reacher()
    report = predict_pack(model.pack, model.inputs[:100])
    assert report.samples == 100
    assert report.ckks_rms == pytest.approx(model.compiled.precision.ckks_rms, rel=0.5)
    assert [layer.name for layer in report.layers] == ["linear0", "activation0", "linear1"]
    with pytest.raises(MalformedInput):
        predict_pack(model.pack, model.inputs[:, :3])
