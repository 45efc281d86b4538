"""500 mutations each of a ciphertext and of evaluation keys, compressed and not: 4xx or harmless."""

import pytest

from support import moai
from support.mutations import mutations
from tensorguard.errors import TensorGuardError
from tensorguard.moai import strict
from tensorguard.wire.frames import Kind, build_frame, parse_frame

LIMIT = 1 << 24


@pytest.fixture(scope="module")
def tiny():
    return moai.tiny()


def ciphertext(tiny, frame):
    parameters = tiny.client.parameters
    parsed = parse_frame(frame, kind=Kind.ciphertext, parameters_id=parameters.id, limit=LIMIT)
    return [
        strict.parse_ciphertext(item, parameters, level=parameters.levels, scale=parameters.scale)
        for item in parsed.items
    ]


def galois(tiny, frame):
    parameters, elements = tiny.client.parameters, tiny.model.spec.galois_elements
    parsed = parse_frame(frame, kind=Kind.evaluation_keys, parameters_id=parameters.id, limit=LIMIT)
    return [strict.parse_galois_keys(item, parameters, elements=elements) for item in parsed.items]


def outcome(parse, tiny, frame):
    """Return the refusal, or None when the frame was accepted; anything else propagates."""
    try:
        parse(tiny, frame)
    except TensorGuardError as error:
        return error
    return None


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [Kind.ciphertext, Kind.evaluation_keys], ids=lambda k: k.name)
def test_500_mutations_of_a_frame_never_raise_anything_but_4xx(tiny, kind, compressed):
    parse = ciphertext if kind is Kind.ciphertext else galois
    good = tiny.client.encrypt(tiny.inputs[0]) if kind is Kind.ciphertext else tiny.key_frame
    if not compressed:
        good = build_frame(
            kind, tiny.client.parameters.id, parse(tiny, good), key_id=tiny.client.key_id
        )
    parse(tiny, good)
    outcomes = [outcome(parse, tiny, bad) for bad in mutations(good, count=500, seed=int(kind))]
    refusals = [error for error in outcomes if error]
    assert all(400 <= error.status < 500 and error.remedy for error in refusals)
    # what is left are residues within their primes: no parser can tell those from good ones
    assert len(refusals) > 300


def test_mutated_frames_that_pass_are_evaluated_without_harm(tiny):
    good = build_frame(
        Kind.ciphertext,
        tiny.client.parameters.id,
        ciphertext(tiny, tiny.client.encrypt(tiny.inputs[0])),
        key_id=tiny.client.key_id,
    )
    evaluated = 0
    for bad in mutations(good, count=60, seed=3):
        try:
            result = tiny.model.evaluate(tiny.keys, bad)
        except TensorGuardError:
            continue
        evaluated += 1
        assert tiny.client.decrypt(result).shape == (2,)
    assert evaluated
    assert tiny.infer(tiny.inputs[0]).shape == (2,)
