"""Models that several tests share: each is trained, packed and given keys once per process."""

import importlib.util
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tensorguard.bench import heads
from tensorguard.crypto.hybrid import SoftwareHybridSigner
from tensorguard.crypto.trust import TrustStore
from tensorguard.moai import pack
from tensorguard.moai.backends.base import Model, open_backend
from tensorguard.moai.client import ClientKeys
from tensorguard.moai.compile import Compiled, build_pack, compile_network, from_sklearn
from tensorguard.moai.compile.network import Activation, Dense, Network

LIMIT = 1 << 24


def installed_backends():
    """Name the backends that this environment can run; `native` is a distribution of its own."""
    native = importlib.util.find_spec("tensorguard_moai_native") is not None
    return ["tenseal", "native"] if native else ["tenseal"]


@cache
def signer():
    return SoftwareHybridSigner.generate()


@cache
def trust():
    return TrustStore.from_keys({"tests": signer().public_key})


@dataclass(frozen=True, eq=False)
class Ready:
    """A verified pack with a loaded model, a client, and its keys loaded."""

    compiled: Compiled
    data: bytes
    pack: pack.VerifiedPack
    model: Model
    client: ClientKeys
    key_frame: bytes
    keys: object
    inputs: np.ndarray

    def infer(self, x, **options):
        return self.client.decrypt(
            self.model.evaluate(self.keys, self.client.encrypt(x, **options))
        )


def ready(compiled, inputs, *, name="model"):
    data = build_pack(compiled, name=name, version="1.0", signer=signer())
    verified = pack.verify(pack.read(data, limit=LIMIT), trust())
    model = open_backend("tenseal").load(verified)
    client = ClientKeys.generate(model.spec.view())
    frame = client.evaluation_keys()
    keys = model.load_keys(frame)
    return Ready(compiled, data, verified, model, client, frame, keys, inputs)


def network(*layers, features, **options):
    outputs = len(layers[-1].bias)
    return Network(
        layers,
        mean=np.zeros(features),
        std=np.ones(features),
        output_scale=np.ones(outputs),
        output_offset=np.zeros(outputs),
        **options,
    )


@cache
def tiny():
    """A 2-2 linear map: the smallest keys and ciphertexts there are."""
    rng = np.random.default_rng(1)
    layer = Dense("dense0", np.array([[0.5, -0.25], [0.75, 1.0]]), np.array([0.1, -0.2]), None)
    inputs = rng.uniform(-1, 1, (64, 2))
    return ready(compile_network(network(layer, features=2), inputs), inputs, name="tiny")


@cache
def square():
    """A 4-4-2 net with x^2: the smallest that needs relinearisation."""
    rng = np.random.default_rng(2)
    layers = (
        Dense(
            "a", rng.normal(size=(4, 4)), rng.normal(size=4), Activation("polynomial", (0, 0, 1))
        ),
        Dense("b", rng.normal(size=(2, 4)), rng.normal(size=2), None),
    )
    inputs = rng.uniform(-1, 1, (64, 4))
    return ready(compile_network(network(*layers, features=4), inputs), inputs, name="square")


@cache
def reacher():
    head = heads.reacher_policy(seed=3)
    return ready(compile_network(head.network, head.calibration), head.calibration, name="reacher")


@cache
def digits_estimator():
    """A fitted 64-32-10 relu classifier behind a scaler, and all images."""
    images, labels = load_digits(return_X_y=True)
    estimator = make_pipeline(
        StandardScaler(), MLPClassifier((32,), solver="adam", random_state=0, max_iter=60, tol=1e-2)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(images[:1200], labels[:1200])
    return estimator, images, labels


@cache
def digits():
    estimator, images, _ = digits_estimator()
    compiled = from_sklearn(estimator, images[:1200], refit_last=True)
    return ready(compiled, images[:1200], name="digits")
