"""The native backend serves the same packs, keys and clients as the default one."""

import threading
import time

import numpy as np
import pytest
import tensorguard_moai_native as native

from support import moai
from tensorguard.errors import MalformedInput, TooLarge
from tensorguard.moai import residues, strict
from tensorguard.moai.backends.base import open_backend
from tensorguard.moai.backends.native import NativeBackend
from tensorguard.moai.compile import compile_network
from tensorguard.moai.compile.network import Activation, Dense
from tensorguard.wire.frames import Kind, ParametersMismatch, SecretKeyInUpload, parse_frame

MODELS = {model.__name__: model for model in (moai.tiny, moai.square, moai.reacher, moai.digits)}


def test_the_table_opens_it_by_its_name():
    backend = open_backend("native")
    assert isinstance(backend, NativeBackend)
    assert backend.name == "native"


def load(ready, **options):
    model = NativeBackend(**options).load(ready.pack)
    return model, model.load_keys(ready.key_frame)


def infer(ready, model, keys, x):
    return ready.client.decrypt(model.evaluate(keys, ready.client.encrypt(x, out_of_range="clip")))


@pytest.mark.parametrize("kernels", native.available_kernels())
@pytest.mark.parametrize("name", MODELS)
def test_results_are_the_networks_within_the_predicted_error(name, kernels):
    ready = MODELS[name]()
    model, keys = load(ready, kernels=kernels)
    assert model.kernels == kernels
    rows = ready.inputs[:16]
    results = np.array([infer(ready, model, keys, x) for x in rows])
    rms = float(np.sqrt(((results - model.spec.graph.apply(rows)) ** 2).mean()))
    assert rms < 3 * ready.compiled.precision.ckks_absolute_rms  # of a few samples


@pytest.mark.parametrize("degree", [1, 2, 4, 5, 7, 9])
def test_every_degree_is_evaluated(degree):
    rng = np.random.default_rng(degree)
    activation = Activation("polynomial", tuple(rng.normal(size=degree + 1).tolist()))
    layers = (
        Dense("a", rng.normal(size=(5, 3)) / 2, rng.normal(size=5), activation),
        Dense("b", rng.normal(size=(2, 5)), rng.normal(size=2), None),
    )
    network = moai.network(*layers, features=3)
    data = rng.uniform(-1, 1, (128, 3))
    ready = moai.ready(compile_network(network, data, error_budget=0.2), data)
    model, keys = load(ready)
    spread = np.ptp(network.raw(data), axis=0)
    tolerance = 10 * ready.compiled.precision.ckks_rms + 1e-6
    assert (
        np.abs((infer(ready, model, keys, data[0]) - network.raw(data[:1])[0]) / spread).max()
        < tolerance
    )


def test_one_input_gives_one_result_with_any_kernels_and_threads():
    ready = moai.reacher()
    frame = ready.client.encrypt(ready.inputs[0])
    results = set()
    for kernels in native.available_kernels():
        for threads in (1, 2):
            model, keys = load(ready, kernels=kernels, threads=threads)
            results |= {model.evaluate(keys, frame) for _ in range(2)}
    assert len(results) == 1


def test_requests_of_several_threads_do_not_disturb_each_other():
    ready = moai.square()
    model, keys = load(ready, threads=2)
    frames = [ready.client.encrypt(x) for x in ready.inputs[:4]]
    expected = [model.evaluate(keys, frame) for frame in frames]
    wrong = []

    def work(i):
        results = {model.evaluate(keys, frames[i]) for _ in range(5)}
        wrong.extend(results - {expected[i]})

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_python_runs_while_the_runtime_computes():
    primes = _primes(32768, 14)
    context = native.Context(32768, primes)
    body = np.zeros((2, 13, 32768), np.uint64)
    x = context.ciphertext(body)
    keys = native.Keys()
    keys.add_rotation(3, context.key(np.zeros((13, 2, 14, 32768), np.uint64)))
    spans = []

    def work():
        start = time.perf_counter()
        native.fold(x, [3] * 3, keys)
        spans.append((start, time.perf_counter()))

    worker = threading.Thread(target=work)
    ticks = []
    worker.start()
    while worker.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    worker.join()
    ((start, end),) = spans
    inside = [tick for tick in ticks if start <= tick <= end]
    gaps = np.diff([start, *inside, end])
    assert end - start > 0.02
    assert gaps.max() < 0.6 * (end - start)


def _primes(degree, count):
    from tensorguard.moai.parameters import ntt_primes

    return ntt_primes(degree, 50, count)


def test_keys_and_ciphertexts_of_another_model_are_refused():
    tiny, square = moai.tiny(), moai.square()
    tiny_model, tiny_keys = load(tiny)
    square_model, square_keys = load(square)
    with pytest.raises(ParametersMismatch):
        square_model.load_keys(tiny.key_frame)
    with pytest.raises(TooLarge):
        tiny_model.load_keys(square.key_frame)
    with pytest.raises(ParametersMismatch):
        tiny_model.evaluate(tiny_keys, square.client.encrypt(square.inputs[0]))
    with pytest.raises(ParametersMismatch):
        tiny_model.evaluate(square_keys, tiny.client.encrypt(tiny.inputs[0]))
    with pytest.raises(ParametersMismatch):
        load(tiny)[0].evaluate(tiny_keys, tiny.client.encrypt(tiny.inputs[0]))


def test_a_secret_key_in_an_upload_is_named():
    tiny = moai.tiny()
    model, keys = load(tiny)
    secret = tiny.client.to_frame()
    with pytest.raises(SecretKeyInUpload):
        model.load_keys(secret)
    with pytest.raises(SecretKeyInUpload):
        model.evaluate(keys, secret)


def test_a_result_is_not_an_input():
    tiny = moai.tiny()
    model, keys = load(tiny)
    with pytest.raises(MalformedInput):
        model.evaluate(keys, model.evaluate(keys, tiny.client.encrypt(tiny.inputs[0])))


def test_what_we_write_is_what_strict_reads():
    square = moai.square()
    model, keys = load(square)
    frame = model.evaluate(keys, square.client.encrypt(square.inputs[0]))
    parameters = model.spec.parameters
    (item,) = parse_frame(
        frame, kind=Kind.ciphertext, parameters_id=parameters.id, limit=1 << 20
    ).items
    blob = strict.parse_ciphertext(item, parameters, level=1, scale=parameters.scale)
    given = residues.read_ciphertext(blob)
    assert given.words.shape == (2, 1, parameters.degree)
    assert not given.seed
    again = residues.write_ciphertext(given.words, parameters, scale=parameters.scale)
    assert again == item


def test_the_same_result_as_the_default_backend():
    for ready in (moai.tiny(), moai.reacher()):
        model, keys = load(ready)
        frame = ready.client.encrypt(ready.inputs[5])
        ours = ready.client.decrypt(model.evaluate(keys, frame))
        theirs = ready.client.decrypt(ready.model.evaluate(ready.keys, frame))
        assert np.abs(ours - theirs).max() < 10 * ready.compiled.precision.ckks_absolute_rms
