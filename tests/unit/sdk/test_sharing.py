"""Results that may be shared: the noise is what the formula says, and there are only so many of them."""

from __future__ import annotations

import math
import random

import httpx
import msgspec
import numpy as np
import pytest

from support import moai
from tensorguard.errors import InputError
from tensorguard.sdk.inference import EncryptedModel, InferenceClient
from tensorguard.sdk.sharing import (
    BOUND_FACTOR,
    Flood,
    KeysOutliveTheirCount,
    OtherPack,
    PrecisionTooLow,
    ResultsSpent,
    SharedResults,
)

pytestmark = pytest.mark.invariant("TG-I79")
ERROR, OUTPUTS = 1e-9, 4
N = 40_000


def flood(**changes: float) -> Flood:
    values = {"outputs": OUTPUTS, "results": 1, "security_bits": 30} | changes
    return Flood.over(ERROR, **values)


def advantage_bound(made: Flood, *, results: int, outputs: int) -> float:
    """Bound a distinguisher by Pinsker, for an error as large as it is taken to be."""
    norm = BOUND_FACTOR * math.sqrt(outputs) * ERROR
    divergence = results * norm**2 / (2 * made.deviation**2)
    return math.sqrt(divergence / 2)


@pytest.mark.parametrize("security_bits", [20, 30, 60])
@pytest.mark.parametrize("results", [1, 100, 10_000])
def test_all_results_together_give_a_distinguisher_less_than_promised(
    security_bits: int, results: int
) -> None:
    made = flood(security_bits=security_bits, results=results)
    advantage = advantage_bound(made, results=results, outputs=OUTPUTS)
    assert advantage < 2 ** -(security_bits / 2 + 2)
    assert advantage > 2 ** -(security_bits / 2 + 3)  # nor is precision thrown away


def test_the_noise_has_its_deviation_and_no_digit_is_below_it() -> None:
    made = flood()
    exact = 0.3
    shown = made.apply(np.full(N, exact), random.Random(1))
    error = shown - exact
    assert abs(error.mean()) < 5 * made.deviation / math.sqrt(N)
    # rounding to the grid adds the variance of a uniform error, grid^2 / 12
    expected = math.sqrt(made.deviation**2 + made.grid**2 / 12)
    assert abs(error.std() / expected - 1) < 5 / math.sqrt(2 * N)
    standard = error / expected
    assert abs((standard**3).mean()) < 5 * math.sqrt(6 / N)
    assert abs((standard**4).mean() - 3) < 5 * math.sqrt(24 / N)
    assert abs(np.corrcoef(error[:-1], error[1:])[0, 1]) < 5 / math.sqrt(N)
    steps = shown / made.grid
    assert np.array_equal(steps, np.round(steps))
    assert made.deviation / 2 < made.grid <= made.deviation


def test_errors_of_a_key_cannot_be_told_from_none_in_what_is_shown() -> None:
    """Two values that differ by the whole bound are shown by distributions that look the same."""
    made = flood()
    bound = BOUND_FACTOR * math.sqrt(OUTPUTS) * ERROR
    first = made.apply(np.full(N, 0.3), random.Random(2))
    second = made.apply(np.full(N, 0.3 + bound), random.Random(3))
    difference = second.mean() - first.mean()
    assert abs(difference) < 5 * made.deviation * math.sqrt(2 / N)
    assert bound < made.deviation / 100 / math.sqrt(N)  # an average over all of them shows nothing


def test_the_noise_is_that_of_the_generator_which_was_passed_in() -> None:
    values = np.linspace(-1, 1, 8).reshape(2, 4)
    made = flood()
    again = [made.apply(values, random.Random(seed)) for seed in (7, 7, 8)]
    assert again[0].shape == values.shape
    assert np.array_equal(again[0], again[1])
    assert not np.array_equal(again[0], again[2])


@pytest.mark.parametrize("changes", [{"results": 4}, {"security_bits": 32}, {"outputs": 16}])
def test_more_to_hide_costs_a_bit(changes: dict[str, int]) -> None:
    assert flood().bits - flood(**changes).bits == pytest.approx(1)


class Gateway:
    """A gateway without HTTP that serves one ready model."""

    def __init__(self, ready: moai.Ready) -> None:
        self.ready = ready
        self.frame = b""
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        view = self.ready.client.view
        if request.method == "GET" and "/models/" in request.url.path:
            return httpx.Response(200, content=view.to_json())
        if request.method != "POST":
            self.frame = request.content or self.frame
            return httpx.Response(200)
        self.bodies.append(request.content)
        keys = self.ready.model.load_keys(self.frame)
        result = self.ready.model.evaluate(keys, request.content)
        return httpx.Response(200, content=result, headers={"TG-Pack-Id": view.pack_id})

    def put(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET" and "evaluation-keys" in request.url.path:
            return httpx.Response(404, content=msgspec.json.encode({"code": "unknown"}))
        return self(request)

    def open(self, **options: object) -> EncryptedModel:
        client = InferenceClient(
            "http://127.0.0.1:9", lambda: "t", http=httpx.MockTransport(self.put), **options
        )
        return client.open(self.ready.client.view.name)


def share(model: EncryptedModel, ready: moai.Ready, **options: object) -> SharedResults:
    chosen = {"results": 3, "random": random.Random(5)} | options
    return model.share_results(ready.pack, **chosen)


def test_a_shared_result_is_the_models_within_the_noise_and_is_counted() -> None:
    tiny = moai.tiny()
    gateway = Gateway(tiny)
    shared = share(gateway.open(), tiny)
    assert 4 < shared.flood.bits < 12
    exact = tiny.compiled.graph.apply(tiny.inputs[:3])
    for row, expected in zip(tiny.inputs[:3], exact, strict=True):
        error = shared.predict(row) - expected
        assert (np.abs(error) < 6 * shared.deviation).all()
        assert (np.abs(error) > 1e-6).any()  # without the noise it is a thousand times smaller
    assert shared.left == 0
    with pytest.raises(ResultsSpent):
        shared.predict(tiny.inputs[0])
    assert len(gateway.bodies) == 3


def test_a_result_whose_answer_was_lost_is_spent() -> None:
    tiny = moai.tiny()
    shared = share(Gateway(tiny).open(), tiny, results=1)
    with pytest.raises(InputError):
        shared.predict([1.0, 2.0, 3.0])
    with pytest.raises(ResultsSpent):
        shared.predict(tiny.inputs[0])


def test_one_key_has_one_budget() -> None:
    tiny = moai.tiny()
    model = Gateway(tiny).open()
    share(model, tiny)
    with pytest.raises(ResultsSpent):
        share(model, tiny)


def test_keys_that_outlive_the_count_are_refused(tmp_path) -> None:
    tiny = moai.tiny()
    model = Gateway(tiny).open(keys_path=tmp_path / "k", unsafe_plain_keys=True)
    with pytest.raises(KeysOutliveTheirCount):
        share(model, tiny)


def test_what_would_leave_too_little_is_refused_not_invented() -> None:
    square = moai.square()
    model = Gateway(square).open()
    with pytest.raises(PrecisionTooLow, match=r"0\.0 bits"):
        share(model, square)
    tiny = moai.tiny()
    model = Gateway(tiny).open()
    for options in ({"results": 1 << 20}, {"security_bits": 60}, {"least_bits": 12.0}):
        with pytest.raises(PrecisionTooLow):
            share(model, tiny, **options)
    share(model, tiny)  # what was refused spent no budget


def test_the_error_is_that_of_the_pack_which_is_served() -> None:
    with pytest.raises(OtherPack):
        share(Gateway(moai.tiny()).open(), moai.square())


@pytest.mark.parametrize("options", [{"results": 0}, {"results": -1}, {"security_bits": 19}])
def test_budgets_and_security_out_of_range_are_refused(options: dict[str, int]) -> None:
    tiny = moai.tiny()
    with pytest.raises(InputError):
        share(Gateway(tiny).open(), tiny, **options)
