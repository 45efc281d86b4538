from dataclasses import replace

import pytest

from tensorguard.moai.parameters import (
    MAX_LOG_QP,
    CkksParameters,
    InsecureParameters,
    is_prime,
    make_parameters,
    ntt_primes,
)
from tensorguard.moai.seal import Seal
from tensorguard.wire.models import Parameters


@pytest.fixture(scope="module")
def good():
    return make_parameters(8192, depth=4, scale_bits=33, headroom_bits=8)


def test_primes_are_those_that_exist():
    known = {2, 3, 5, 7, 11, 13, 97, 7919, 2**31 - 1, 2**61 - 1}
    assert all(is_prime(n) for n in known)
    assert not any(is_prime(n) for n in (0, 1, 4, 561, 3215031751, 2**32 + 1, 2**61 + 1))
    assert len(set(ntt_primes(8192, 33, 6))) == 6


def test_our_chain_ids_are_those_of_seal(good):
    context = Seal(good).context
    as_bytes = lambda words: b"".join(w.to_bytes(8, "little") for w in words)  # noqa: E731
    assert good.parms_id() == as_bytes(context.key_parms_id())
    assert good.parms_id(5) == as_bytes(context.first_parms_id())
    assert good.parms_id(1) == as_bytes(context.last_parms_id())


def test_the_id_covers_every_field(good):
    other = replace(good, scale_bits=32)
    assert len(good.id) == 32
    assert other.id != good.id
    assert CkksParameters.from_wire(good.to_wire()).id == good.id


@pytest.mark.parametrize("degree", MAX_LOG_QP)
def test_parameters_over_the_128_bit_table_are_refused(degree):
    scale = 40
    fits = (MAX_LOG_QP[degree] - 2 * 48) // scale
    make_parameters(degree, depth=fits, scale_bits=scale, headroom_bits=8)
    with pytest.raises(InsecureParameters, match="log2"):
        make_parameters(degree, depth=fits + 1, scale_bits=scale, headroom_bits=8)


def test_weakened_parameters_are_refused(good):
    changes = [
        {"degree": 4096},
        {"degree": 8193},
        {"primes": good.primes[:1]},
        {"primes": (*good.primes[:-1], good.primes[0])},
        {"primes": (*good.primes[:-1], good.primes[-1] + 2)},
        {"primes": (*good.primes[:-1], (1 << 33) + 1)},
        {"special": good.primes[0]},
        {"special": ntt_primes(8192, 30, 1)[0]},
        {"scale_bits": 42},
    ]
    for change in changes:
        with pytest.raises(InsecureParameters):
            replace(good, **change)


def test_a_server_cannot_talk_a_client_into_weak_parameters(good):
    message = good.to_wire()
    weak = Parameters(
        scheme="CKKS",
        poly_modulus_degree=8192,
        primes=(*message.primes, *map(str, ntt_primes(8192, 40, 1))),
        special_prime=message.special_prime,
        scale_bits=33,
    )
    with pytest.raises(InsecureParameters):
        CkksParameters.from_wire(weak)
