import warnings

import numpy as np
import pytest
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, StandardScaler
from sklearn.svm import LinearSVC, LinearSVR
from skops import io as skops

from tensorguard.moai.compile import from_sklearn, read_model
from tensorguard.moai.compile.from_sklearn import network_of
from tensorguard.moai.compile.network import ModelNotSupported
from tensorguard.moai.graph import Linear

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
RNG = np.random.default_rng(3)
X = RNG.normal(size=(300, 6)) * [1, 2, 30, 4, 0.5, 6] + 3
Y = X @ [1, -1, 0.1, 2, 5, 0.3] + np.sin(X[:, 0])
THREE = np.digitize(Y, np.quantile(Y, [1 / 3, 2 / 3]))


@pytest.mark.parametrize(
    "model",
    [LinearRegression(), Ridge(), Lasso(0.01), ElasticNet(0.01), SGDRegressor(), LinearSVR()],
    ids=lambda model: type(model).__name__,
)
@pytest.mark.parametrize("several", [False, True])
def test_linear_regressions_keep_their_predictions(model, several):
    target = np.column_stack([Y, -2 * Y + 1]) if several else Y
    if several and isinstance(model, SGDRegressor | LinearSVR):
        target = Y[:, None].ravel()
    estimator = make_pipeline(StandardScaler(), model).fit(X, target)
    compiled = from_sklearn(estimator, X, error_budget=1e-4)
    expected = estimator.predict(X).reshape(len(X), -1)
    np.testing.assert_allclose(compiled.graph.apply(X), expected, rtol=1e-9, atol=1e-9)
    assert len(compiled.graph.layers) == 1


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        LinearSVC(),
        RidgeClassifier(),
        Perceptron(),
        SGDClassifier(random_state=0),
        SGDClassifier(loss="log_loss", random_state=0),
    ],
    ids=["logistic", "svc", "ridge", "perceptron", "sgd-hinge", "sgd-log"],
)
def test_linear_classifiers_keep_their_labels_and_probabilities(model, classes):
    names = np.array(["slow", "mid", "fast"])[np.minimum(THREE, classes - 1)]
    estimator = make_pipeline(StandardScaler(), model).fit(X, names)
    compiled = from_sklearn(estimator, X)
    output, got = compiled.graph.output, compiled.graph.apply(X)
    assert output.labels == tuple(estimator.classes_)
    assert (np.array(output.labels)[got.argmax(axis=1)] == estimator.predict(X)).all()
    if compiled.provenance.options["outputs"] == "probabilities":
        np.testing.assert_allclose(got, estimator.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("whiten", [False, True])
def test_scalers_and_pca_become_one_linear_layer_and_the_input_scaling(whiten):
    steps = (StandardScaler(), MinMaxScaler((-2, 3)), PCA(4, whiten=whiten), MaxAbsScaler())
    estimator = make_pipeline(*steps, Ridge()).fit(X, Y)
    compiled = from_sklearn(estimator, X, error_budget=1e-4)
    np.testing.assert_allclose(compiled.graph.apply(X)[:, 0], estimator.predict(X), rtol=1e-9)
    assert [type(layer) for layer in compiled.graph.layers] == [Linear]
    z = compiled.graph.standardise(X)
    np.testing.assert_allclose(z, make_pipeline(*steps[:2]).transform(X), atol=1e-9)


def test_pca_before_a_perceptron_and_a_scaled_target():
    estimator = TransformedTargetRegressor(
        make_pipeline(
            MinMaxScaler(),
            PCA(3),
            MLPRegressor(hidden_layer_sizes=(8,), activation="tanh", random_state=0),
        ),
        transformer=MinMaxScaler(),
    ).fit(X, Y)
    network = network_of(estimator)
    got = network.raw(X) * network.output_scale + network.output_offset
    np.testing.assert_allclose(got[:, 0], estimator.predict(X).ravel(), rtol=1e-9)
    assert len(from_sklearn(estimator, X).graph.layers) == 3


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        PCA(2).fit(X),
        make_pipeline(StandardScaler(), PCA(2)).fit(X),
        make_pipeline(PCA(2), "passthrough"),
        RidgeClassifier().fit(X, np.eye(3)[THREE]),
        TransformedTargetRegressor(Ridge(), transformer=PCA(1)).fit(X, np.column_stack([Y, Y])),
        TransformedTargetRegressor(Ridge(), func=np.log1p, inverse_func=np.expm1).fit(X, Y + 1e3),
    ],
    ids=range(7),
)
def test_other_linear_estimators_are_refused(estimator):
    with pytest.raises(ModelNotSupported):
        network_of(estimator)


def test_linear_pipelines_are_read_from_skops_files(tmp_path):
    path = tmp_path / "model.skops"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (Ridge(), LinearSVC(), SGDClassifier(), LogisticRegression()):
            target = Y if isinstance(model, Ridge) else THREE
            steps = (StandardScaler(), MinMaxScaler(), MaxAbsScaler(), PCA(3, whiten=True))
            estimator = make_pipeline(*steps, model).fit(X, target)
            skops.dump(estimator, path)
            want = getattr(estimator, "decision_function", estimator.predict)(X)
            got = read_model(path).raw(X)
            np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-9, atol=1e-12)
