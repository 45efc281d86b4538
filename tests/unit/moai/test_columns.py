"""Batches: a ciphertext for each feature, its slots are samples, no layer rotates."""

from functools import cache

import msgspec
import numpy as np
import pytest

from support import moai
from tensorguard.bench import heads
from tensorguard.errors import MalformedInput
from tensorguard.moai import pack
from tensorguard.moai.backends.base import LayoutUnsupported, open_backend
from tensorguard.moai.client import ClientKeys, NotForBatches, ViewUntrustworthy, check_view
from tensorguard.moai.compile import build_pack, compile_network
from tensorguard.wire.frames import Kind, ParametersMismatch, build_frame, parse_frame

needs_native = pytest.mark.parametrize(
    "backend", [name for name in moai.installed_backends() if name == "native"]
)


@cache
def reacher():
    head = heads.reacher_policy(seed=3)
    compiled = compile_network(head.network, head.calibration, layout="columns")
    data = build_pack(compiled, name="batch", version="1.0", signer=moai.signer())
    verified = pack.verify(pack.read(data, limit=moai.LIMIT), moai.trust())
    return head, compiled, verified, ClientKeys.generate(verified.spec.view())


def test_a_plan_in_columns_rotates_nothing_and_names_its_layout():
    _, compiled, verified, client = reacher()
    assert compiled.plan.rotations == ()
    assert verified.manifest.packing.layout == "columns"
    assert client.view.packing.layout == "columns"
    single = msgspec.to_builtins(moai.tiny().pack.manifest.packing)
    assert "layout" not in single  # packs for single samples keep their bytes and ids


@needs_native
def test_a_batch_is_answered_sample_by_sample_within_the_predicted_error(backend):
    head, compiled, verified, client = reacher()
    model = open_backend(backend).load(verified)
    keys = model.load_keys(client.evaluation_keys())
    rows = head.calibration[:3000]
    found = client.decrypt_batch(model.evaluate(keys, client.encrypt_batch(rows)), samples=3000)
    truth = compiled.graph.apply(rows)
    rms = float(np.sqrt(((found - truth) ** 2).mean()))
    predicted = compiled.precision.ckks_absolute_rms
    assert predicted / 2 < rms < predicted * 2
    one = client.decrypt(model.evaluate(keys, client.encrypt(rows[0])))
    assert np.abs(one - truth[0]).max() < 10 * predicted


@needs_native
def test_a_batch_with_other_columns_than_the_model_is_refused(backend):
    head, _, verified, client = reacher()
    model = open_backend(backend).load(verified)
    keys = model.load_keys(client.evaluation_keys())
    frame = client.encrypt_batch(head.calibration[:2])
    identity = client.parameters.id
    items = parse_frame(
        frame, kind=Kind.ciphertext, parameters_id=identity, limit=1 << 26, columns=10
    ).items
    for wrong in (items[:-1], (*items, items[0]), items[:1]):
        changed = build_frame(Kind.ciphertext, identity, wrong, key_id=client.key_id)
        with pytest.raises(MalformedInput, match="10 columns"):
            model.evaluate(keys, changed)
    with pytest.raises(ParametersMismatch):
        model.evaluate(keys, moai.tiny().client.encrypt(moai.tiny().inputs[0]))


def test_a_frame_without_a_batch_model_keeps_its_four_items():
    identity = key = bytes(32)
    frame = build_frame(Kind.ciphertext, identity, [b"x"] * 5, key_id=key[:16])
    with pytest.raises(MalformedInput, match="1 to 4"):
        parse_frame(frame, kind=Kind.ciphertext, parameters_id=identity, limit=1000)
    with pytest.raises(MalformedInput):
        build_frame(Kind.evaluation_keys, identity, [b"x"] * 5, key_id=key[:16])
    with pytest.raises(MalformedInput):
        build_frame(Kind.ciphertext, identity, [b""] * 4097, key_id=key[:16])


def test_bad_batches_are_refused_before_anything_is_encrypted():
    head, _, _, client = reacher()
    rows = head.calibration[:2]
    for wrong in (rows[0], rows[:0], rows[:, :-1], np.zeros((4097, 10)), rows * np.nan):
        with pytest.raises(MalformedInput):
            client.encrypt_batch(wrong)
    with pytest.raises(NotForBatches):
        moai.tiny().client.encrypt_batch(np.zeros((2, 2)))
    with pytest.raises(MalformedInput):
        client.decrypt_batch(b"", samples=0)


def test_a_view_whose_columns_have_blocks_or_rotations_is_not_believed():
    view = reacher()[3].view
    packing = msgspec.structs.replace(view.packing, blocks=2)
    for wrong in (
        msgspec.structs.replace(view, packing=packing),
        msgspec.structs.replace(view, rotations=(1,)),
    ):
        with pytest.raises(ViewUntrustworthy):
            check_view(wrong)


def test_the_tenseal_backend_names_what_it_cannot_do():
    with pytest.raises(LayoutUnsupported):
        open_backend("tenseal").load(reacher()[2])
