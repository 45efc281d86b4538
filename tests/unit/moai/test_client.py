import ast
from pathlib import Path

import msgspec
import numpy as np
import pytest

import tensorguard
from support import moai
from tensorguard.errors import MalformedInput, TensorGuardError
from tensorguard.moai.client import ClientKeys, InputOutOfRange, ViewUntrustworthy
from tensorguard.moai.parameters import InsecureParameters, ntt_primes
from tensorguard.wire.frames import ParametersMismatch, WrongKey
from tensorguard.wire.models import MAX_VIEW_BYTES, ModelView

SECRET_NAMES = {"KeyGenerator", "Encryptor", "Decryptor", "SecretKey"}
replace = msgspec.structs.replace


@pytest.fixture(scope="module")
def tiny():
    return moai.tiny()


@pytest.mark.invariant("TG-I18")
def test_only_the_client_module_can_name_a_secret_key():
    root = Path(tensorguard.__file__).parent
    seen = {}
    for path in root.rglob("*.py"):
        names = {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute | ast.Name)
        }
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        if found := (names | imported) & SECRET_NAMES:
            seen[str(path.relative_to(root))] = found
    # the other one is Orion's client, with keys of Lattigo's, in the bench's peer process
    theirs = {"KeyGenerator", "Encryptor", "Decryptor"}
    assert seen == {"moai/client.py": SECRET_NAMES, "bench/peer_orion.py": theirs}


def test_keys_survive_their_frame(tiny):
    again = ClientKeys.from_frame(tiny.client.to_frame(), tiny.client.view)
    frame = tiny.model.evaluate(tiny.keys, again.encrypt(tiny.inputs[0]))
    np.testing.assert_allclose(again.decrypt(frame), tiny.client.decrypt(frame))
    assert again.to_frame() == tiny.client.to_frame()


def test_a_frame_of_keys_is_refused_for_other_parameters(tiny):
    with pytest.raises(ParametersMismatch):
        ClientKeys.from_frame(tiny.client.to_frame(), moai.square().client.view)


def test_a_damaged_frame_of_keys_is_refused(tiny):
    good = tiny.client.to_frame()
    for damaged in (b"", good[:-1], good[:60], good + b"x", good[:200] + b"\0" * (len(good) - 200)):
        with pytest.raises(TensorGuardError):
            ClientKeys.from_frame(damaged, tiny.client.view)


@pytest.mark.parametrize("x", [[], [1], [1, 2, 3], [[0, 0]], [0, np.nan], [np.inf, 0]], ids=repr)
def test_inputs_of_the_wrong_shape_or_not_finite_are_refused(tiny, x):
    with pytest.raises(MalformedInput):
        tiny.client.encrypt(x)


def test_inputs_outside_the_calibrated_range_are_refused_or_clipped(tiny):
    with pytest.raises(InputOutOfRange, match="input 1"):
        tiny.client.encrypt([0.0, 1.5])
    high = np.array(tiny.client.view.input.high)
    clipped = tiny.infer([0.0, 50.0], out_of_range="clip")
    np.testing.assert_allclose(clipped, tiny.infer([0.0, high[1]]), atol=1e-4)


def test_the_same_input_never_gives_the_same_ciphertext(tiny):
    assert tiny.client.encrypt([0.1, 0.2]) != tiny.client.encrypt([0.1, 0.2])


def test_another_clients_result_is_refused_and_decrypts_to_nothing(tiny):
    other = ClientKeys.generate(tiny.client.view)
    frame = tiny.model.evaluate(tiny.keys, tiny.client.encrypt(tiny.inputs[0]))
    with pytest.raises(WrongKey):
        other.decrypt(frame)
    other.key_id = tiny.client.key_id  # as a forger would write it
    assert np.abs(other.decrypt(frame) - tiny.client.decrypt(frame)).max() > 1


def test_an_input_under_another_secret_key_is_refused(tiny):
    other = ClientKeys.generate(tiny.client.view)
    with pytest.raises(WrongKey):
        tiny.model.evaluate(tiny.keys, other.encrypt(tiny.inputs[0]))


def test_results_are_parsed_strictly(tiny):
    frame = tiny.model.evaluate(tiny.keys, tiny.client.encrypt(tiny.inputs[0]))
    for bad in (b"", frame[:40], frame[:-1], frame + b"x", tiny.key_frame, bytes(len(frame))):
        with pytest.raises(TensorGuardError):
            tiny.client.decrypt(bad)
    with pytest.raises(TensorGuardError):  # at the wrong level
        tiny.client.decrypt(tiny.client.encrypt(tiny.inputs[0]))


def test_a_view_that_lies_is_refused_before_any_key_is_made(tiny):
    view = tiny.client.view
    weak = replace(
        view.parameters,
        primes=(*view.parameters.primes, *map(str, ntt_primes(8192, 59, 3))),
    )
    with pytest.raises(InsecureParameters):
        ClientKeys.generate(replace(view, parameters=weak))
    packing = view.packing
    lies = [
        replace(view, parameters_id="0" * 64),
        replace(view, rotations=(2, 1)),
        replace(view, rotations=(1, 1)),
        replace(view, rotations=(8192,)),
        replace(moai.reacher().client.view, rotations=tuple(range(1, 513))),
        replace(view, packing=replace(packing, slots=8192)),
        replace(view, packing=replace(packing, period=3)),
        replace(view, packing=replace(packing, blocks=1 << 16)),
        replace(view, packing=replace(packing, period=1)),
        replace(view, rotations=(), relinearisation=False),
    ]
    for lie in lies[:-1]:
        with pytest.raises(ViewUntrustworthy):
            ClientKeys.generate(lie)
    with pytest.raises(ViewUntrustworthy):
        ClientKeys.generate(lies[-1]).evaluation_keys()
    scalings = [
        replace(view, features=3),
        replace(view, input=replace(view.input, std=(0.0, 1.0))),
        replace(view, input=replace(view.input, low=(5.0, 5.0))),
        replace(view, output=replace(view.output, scale=(1.0,))),
        replace(view, output=replace(view.output, activation="softmax")),
        replace(view, output=replace(view.output, labels=("a",))),
    ]
    for lie in scalings:
        with pytest.raises(TensorGuardError):
            ClientKeys.generate(lie)


def test_a_view_survives_the_wire_and_nothing_unknown_does(tiny):
    view = tiny.client.view
    assert ModelView.from_json(view.to_json()) == view
    document = msgspec.json.decode(view.to_json())
    bad = [
        b"",
        b"{}",
        b"[]",
        b"null",
        view.to_json()[:-1],
        b" " * (MAX_VIEW_BYTES + 1),
        b"[" * 100_000,
        msgspec.json.encode({**document, "extra": 1}),
        msgspec.json.encode({**document, "features": "2"}),
        msgspec.json.encode({**document, "rotations": [0]}),
        msgspec.json.encode({**document, "name": "../../etc"}),
        msgspec.json.encode({k: v for k, v in document.items() if k != "packing"}),
        msgspec.json.encode(
            {**document, "parameters": {**document["parameters"], "scheme": "BFV"}}
        ),
    ]
    for data in bad:
        with pytest.raises(MalformedInput):
            ModelView.from_json(data)
