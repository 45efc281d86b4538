"""Damaged uploads are refused by name or evaluated; nothing else comes out of the native backend."""

import pytest

from support import moai
from support.mutations import mutations
from tensorguard.errors import TensorGuardError
from tensorguard.moai.backends.native import NativeBackend


@pytest.mark.parametrize("seed", range(2))
def test_damaged_ciphertexts(seed):
    tiny = moai.tiny()
    model = NativeBackend().load(tiny.pack)
    keys = model.load_keys(tiny.key_frame)
    good = tiny.client.encrypt(tiny.inputs[0])
    statuses = []
    for frame in mutations(good, count=500, seed=seed):
        try:
            model.evaluate(keys, frame)
        except TensorGuardError as error:
            statuses.append(error.status)
    assert len(statuses) > 400
    assert all(400 <= status < 500 for status in statuses)
    expected = model.spec.graph.apply(tiny.inputs[:1])[0]
    assert abs(tiny.client.decrypt(model.evaluate(keys, good)) - expected).max() < 1e-6


def test_damaged_keys():
    tiny = moai.tiny()
    model = NativeBackend().load(tiny.pack)
    statuses = []
    for frame in mutations(tiny.key_frame, count=300, seed=7):
        try:
            model.load_keys(frame)
        except TensorGuardError as error:
            statuses.append(error.status)
    assert len(statuses) > 250
    assert all(400 <= status < 500 for status in statuses)
